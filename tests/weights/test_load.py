"""Weights into a network that exists: what must fit, what may stay new, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from publishers_nets import PUBLISHERS, random_net
from safetensors.torch import save_file
from small_nets import TINY, make_net
from torch import Tensor, nn

from phiscale.errors import ModelDirError
from phiscale.families import get_spec
from phiscale.nn.network import Network, build_network
from phiscale.weights.convert import convert_weights
from phiscale.weights.load import LoadReport, Mismatch, load_weights
from phiscale.weights.model_dir import save

B0 = "efficientnet_b0"


@pytest.fixture
def net() -> Network:
    return make_net(TINY, seed=1)


@pytest.fixture(scope="module")
def torchvision_b0(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    state = random_net(PUBLISHERS["torchvision"], B0, 96).state_dict()
    path = tmp_path_factory.mktemp("torchvision") / "x"
    torch.save(state, path)
    return path, state


def copy_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# -- what must fit -------------------------------------------------------------------------------------


def test_everything_fits(net: Network, tmp_path: Path) -> None:
    target = Network(TINY)
    report = load_weights(target, save(net, tmp_path))
    assert report.complete
    assert set(report.kept) == set(net.state_dict())
    assert same_weights(target, net)


@pytest.mark.parametrize("strict", [True, False])
def test_another_classifier_stays_new(strict: bool, net: Network, tmp_path: Path) -> None:
    target = Network(replace(TINY, num_classes=7))
    fresh = target.state_dict()["classifier.weight"].clone()
    report = load_weights(target, save(net, tmp_path), strict=strict)
    assert [item.name for item in report.skipped] == ["classifier.weight", "classifier.bias"]
    assert not report.new
    assert not report.unused
    assert not report.complete
    assert torch.equal(target.state_dict()["classifier.weight"], fresh)
    assert torch.equal(target.state_dict()["head.conv.weight"], net.state_dict()["head.conv.weight"])
    assert "classifier.bias (needs [7], found [3])" in str(report)


def test_a_classifier_that_is_on_one_side_only(net: Network, tmp_path: Path) -> None:
    body = Network(replace(TINY, num_classes=0))
    report = load_weights(body, save(net, tmp_path / "a"))
    assert set(report.unused) == {"classifier.weight", "classifier.bias"}
    torch.save(body.state_dict(), tmp_path / "b")
    report = load_weights(Network(TINY), tmp_path / "b")
    assert report.new == ("classifier.weight", "classifier.bias")


def test_missing_and_unexpected_are_named(net: Network, tmp_path: Path) -> None:
    state = net.state_dict()
    state["extra"] = state.pop("classifier.bias")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelDirError, match=r"missing: classifier\.bias; unexpected: extra"):
        load_weights(Network(TINY), tmp_path / "weights.pt")
    report = load_weights(Network(TINY), tmp_path / "weights.pt", strict=False)
    assert report.new == ("classifier.bias",)
    assert report.unused == ("extra",)


def test_skips_that_differ_are_named(net: Network, tmp_path: Path) -> None:
    without = replace(TINY, stages=(*TINY.stages[:1], replace(TINY.stages[1], skip=False)))
    target, other = Network(without), save(net, tmp_path / "with")
    with pytest.raises(ModelDirError, match=r"stages\[1\] has a skip in the file and none in the network"):
        load_weights(target, other)
    assert load_weights(target, other, strict=False).complete
    assert target.spec == without
    # And the other way round; what has the same skips fits.
    own = save(target, tmp_path / "without")
    with pytest.raises(ModelDirError, match=r"stages\[1\] has a skip in the network and none in the file"):
        load_weights(net, own)
    assert load_weights(Network(without), own).complete
    # A publisher's file has all skips.
    timm = convert_weights(other, to="timm", output=tmp_path / "timm.safetensors").output
    assert timm is not None
    assert load_weights(Network(TINY), timm).complete
    with pytest.raises(ModelDirError):
        load_weights(Network(without), timm)
    with pytest.raises(
        ModelDirError, match="in the timm layout every MBConv has a skip, and tiny is without"
    ):
        convert_weights(own, to="timm", output=tmp_path / "no.safetensors")


def test_a_body_that_does_not_fit(net: Network, tmp_path: Path) -> None:
    state = net.state_dict()
    del state["head.norm.weight"]
    state["stages.0.0.depthwise.conv.weight"] = torch.zeros(8, 1, 5, 5)
    torch.save(state, tmp_path / "x")
    target = Network(TINY)
    before = copy_of(target)
    with pytest.raises(
        ModelDirError,
        match=r"missing: head\.norm\.weight.*other shape: stages\.0\.0\.depthwise\.conv\.weight \(needs",
    ) as error:
        load_weights(target, tmp_path / "x")
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
    report = load_weights(target, tmp_path / "x", strict=False)
    # A norm without its weight is not taken for one that merely lacks a counter.
    assert report.new == ("head.norm.weight",)
    assert [item.name for item in report.skipped] == ["stages.0.0.depthwise.conv.weight"]
    assert torch.equal(target.state_dict()["head.norm.bias"], state["head.norm.bias"])


def test_another_variant_is_called_by_its_name(torchvision_b0: tuple[Path, dict[str, Tensor]]) -> None:
    target = build_network("efficientnet_b1")
    before, spec = copy_of(target), target.spec
    with pytest.raises(
        ModelDirError,
        match=r"holds efficientnet_b0 and the network is efficientnet_b1; build efficientnet_b0, or",
    ):
        load_weights(target, torchvision_b0[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
    assert target.spec == spec
    report = load_weights(target, torchvision_b0[0], strict=False)
    assert "stem.conv.weight" in report.kept
    assert "stages.0.1.depthwise.conv.weight" in report.new


def test_a_failed_load_changes_nothing(tmp_path: Path) -> None:
    target = Network(TINY)
    before = copy_of(target)
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ModelDirError, match="of no known layout"):
        load_weights(target, tmp_path / "other.pt", strict=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_a_network_that_shares_nothing_with_the_file(net: Network, tmp_path: Path) -> None:
    torch.save(build_network("efficientnet_b0").state_dict(), tmp_path / "x")
    double = replace(TINY.stages[0], kernel_size=7, out_channels=12)
    other = replace(
        TINY,
        stem=replace(TINY.stem, out_channels=12),
        stages=(double, replace(double, out_channels=20)),
        head=None,
        num_classes=0,
    )
    with pytest.raises(ModelDirError, match=r"not one tensor of .* fits the network tiny"):
        load_weights(Network(other), tmp_path / "x", strict=False)


def test_only_our_networks_are_loaded_into(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"network from phiscale\.create_model is needed, got Linear"):
        load_weights(nn.Linear(2, 2), tmp_path / "x")


def test_a_wrapped_network(net: Network, tmp_path: Path) -> None:
    target = nn.DataParallel(Network(TINY))
    load_weights(target, save(net, tmp_path))
    assert same_weights(target.module, net)


# -- types and counters --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_another_precision(dtype: torch.dtype, net: Network, tmp_path: Path) -> None:
    state = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in net.state_dict().items()
    }
    torch.save(state, tmp_path / "x.pt")
    save_file(state, tmp_path / "x.safetensors")
    for path in (tmp_path / "x.pt", tmp_path / "x.safetensors"):
        target = Network(TINY)
        load_weights(target, path)
        for name, tensor in target.state_dict().items():
            assert torch.equal(tensor, state[name].to(tensor.dtype))
        assert target.get_parameter("classifier.weight").dtype == torch.float32


def test_a_network_of_another_precision(net: Network, tmp_path: Path) -> None:
    target = Network(TINY).to(torch.bfloat16)
    load_weights(target, save(net, tmp_path))
    found, given = (model.get_parameter("classifier.weight") for model in (target, net))
    assert torch.equal(found, given.bfloat16())


def test_a_file_without_counters_of_batches(
    torchvision_b0: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """As Keras' files are, and old ones of PyTorch."""
    state = {name: t for name, t in torchvision_b0[1].items() if not name.endswith("num_batches_tracked")}
    assert len(state) < len(torchvision_b0[1])
    torch.save(state, tmp_path / "x")
    target = build_network(B0)
    for module in target.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_buffer("num_batches_tracked", torch.tensor(5))
    assert load_weights(target, tmp_path / "x").complete
    counters = [t for name, t in target.state_dict().items() if name.endswith("num_batches_tracked")]
    assert {int(counter) for counter in counters} == {0}
    convert_weights(tmp_path / "x", "timm", tmp_path / "y.pth")
    assert not any("num_batches" in name for name in torch.load(tmp_path / "y.pth", weights_only=True))


# -- the report ----------------------------------------------------------------------------------------


def test_the_report_is_a_table(torchvision_b0: tuple[Path, dict[str, Tensor]]) -> None:
    target = build_network(B0, num_classes=10, in_channels=1)
    path = torchvision_b0[0]
    text = str(load_weights(target, path))
    kept = len(target.state_dict()) - 2
    assert text.splitlines() == [
        f"torchvision efficientnet_b0 from {path}",
        f"kept          {kept}  stem.conv.weight, stem.norm.weight, stem.norm.bias, stem.norm.running_mean, "
        f"stem.norm.running_var and {kept - 5} more",
        "other shape     2  classifier.weight (needs [10, 1280], found [1000, 1280]), "
        "classifier.bias (needs [10], found [1000])",
        "adapted     stem.conv.weight: 3 input channels to 1",
        "padding       symmetric instead of same, as torchvision's efficientnet_b0 has it",
        "norm_eps      1e-05 instead of 0.001, as torchvision's efficientnet_b0 has it",
        "norm_momentum 0.1 instead of 0.01, as torchvision's efficientnet_b0 has it",
    ]


def test_a_report_that_is_complete_raises_nothing() -> None:
    LoadReport(kept=("a",)).require_all("x")
    mismatch = Mismatch(name="a", expected=(1, 2), found=(3,))
    with pytest.raises(
        ModelDirError, match=r"x does not fit the network: other shape: a \(needs \[1, 2\], found"
    ):
        LoadReport(kept=(), skipped=(mismatch,)).require_all("x")


# -- settings ------------------------------------------------------------------------------------------


def test_settings_follow_the_weights_or_are_left(torchvision_b0: tuple[Path, dict[str, Tensor]]) -> None:
    followed, left = build_network(B0), build_network(B0)
    load_weights(followed, torchvision_b0[0])
    report = load_weights(left, torchvision_b0[0], adjust=False)
    assert (followed.spec.padding, followed.spec.norm_eps, followed.spec.norm_momentum) == (
        "symmetric",
        1e-5,
        0.1,
    )
    assert left.spec == get_spec(B0)
    assert report.settings["padding"] == (
        "same; the weights were trained with symmetric, as torchvision's efficientnet_b0 has it"
    )
    assert same_weights(followed, left)
    report = load_weights(followed, torchvision_b0[0])
    assert report.settings["padding"] == "symmetric, as torchvision's efficientnet_b0 has it"


def test_settings_of_a_model_directory(net: Network, tmp_path: Path) -> None:
    source = Network(replace(TINY, padding="symmetric", norm_eps=1e-4))
    target = Network(TINY)
    load_weights(target, save(source, tmp_path))
    assert (target.spec.padding, target.spec.norm_eps) == ("symmetric", 1e-4)


def test_a_repository_of_transformers(tmp_path: Path) -> None:
    """A folder as `save_pretrained` writes it, with the names of its classes."""
    labels = {str(index): name for index, name in enumerate(("cat", "dog", "fox"))}
    theirs = PUBLISHERS["transformers"].build(B0, 224)
    theirs.classifier = nn.Linear(1280, 3)
    save_file(copy_of(theirs), tmp_path / "model.safetensors")
    config = {"model_type": "efficientnet", "batch_norm_eps": 0.002, "id2label": labels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = build_network(B0, num_classes=2)
    report = load_weights(net, tmp_path, classes=["fox", "owl"])
    assert net.spec.norm_eps == 0.002
    assert torch.equal(net.state_dict()["classifier.weight"][0], theirs.state_dict()["classifier.weight"][2])
    assert report.adapted["classifier.weight"] == "1 of 2 rows picked by class name; new: owl"


# -- our own layout ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2", "efficientnet_lite0"]
)
def test_every_family_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = build_network(name, num_classes=5), build_network(name, num_classes=5)
    load_weights(target, save(source, tmp_path / "dir"))
    assert same_weights(target, source)
    torch.save(source.state_dict(), tmp_path / "x")
    assert load_weights(build_network(name, num_classes=5), tmp_path / "x").complete
    # A file that was written here says by itself what is in it.
    convert_weights(tmp_path / "x", "phiscale", tmp_path / "y.safetensors", spec=source.spec)
    assert convert_weights(tmp_path / "y.safetensors", "phiscale", tmp_path / "z.pth").spec == source.spec
