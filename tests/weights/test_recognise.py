"""Whose layout a file has and which network it holds, from nothing but names and shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from publishers_nets import PUBLISHERS
from safetensors.torch import save_file
from torch import Tensor

from phiscale.errors import ModelDirError
from phiscale.families import get_spec, list_specs
from phiscale.nn.network import Network
from phiscale.scaling.compound import CompoundRule, compound_scale
from phiscale.spec import NetworkSpec
from phiscale.weights.checkpoint import SPEC_KEY, open_checkpoint
from phiscale.weights.convert import convert_weights
from phiscale.weights.create import create_model
from phiscale.weights.formats import FORMATS, KeyMap
from phiscale.weights.load import load_weights
from phiscale.weights.recognise import recognise, to_layout
from phiscale.weights.shapes import tensor_shapes

EFFICIENTNETS = [*list_specs("efficientnet"), *list_specs("efficientnet_lite")]
# Every layout with the networks that it has names for.
PAIRS = [
    (layout, name)
    for layout in FORMATS.values()
    for name in EFFICIENTNETS
    if not ("lite" in name and layout.needs_se)
]
LAYOUTS = pytest.mark.parametrize("layout", FORMATS.values(), ids=lambda layout: layout.name)


def str_of(value: KeyMap | str) -> str:
    return value if isinstance(value, str) else value.name


B0 = get_spec("efficientnet_b0")
HALF = replace(compound_scale(B0, phi=0.5, rule=CompoundRule(alpha=1.2, beta=1.1, gamma=1.15)), name="half")


def blank(spec: NetworkSpec, layout: KeyMap | str = "phiscale") -> dict[str, Tensor]:
    """Names and shapes by a layout, without values."""
    layout = FORMATS[layout] if isinstance(layout, str) else layout
    shapes = tensor_shapes(spec)
    return to_layout(
        layout, spec, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    )


def store(state: Mapping[str, Tensor], path: Path) -> Path:
    """Write a pickle of zeros."""
    torch.save({name: torch.zeros(tensor.shape) for name, tensor in state.items()}, path)
    return path


def settings(spec: NetworkSpec) -> tuple[str, float]:
    return spec.padding, spec.norm_eps


# -- variants ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "name"), PAIRS, ids=str_of)
def test_every_variant_in_every_layout(layout: KeyMap, name: str) -> None:
    spec = get_spec(name)
    match = recognise(blank(spec, layout))
    assert (match.layout, match.spec) == (layout, spec)
    assert match.complete


@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (1000, 1), (1, 5), (0, 3)])
@pytest.mark.parametrize(("layout", "name"), [pair for pair in PAIRS if pair[1][-1] == "1"], ids=str_of)
def test_classes_and_channels_are_the_files(layout: KeyMap, name: str, classes: int, channels: int) -> None:
    spec = replace(get_spec(name), num_classes=classes, in_channels=channels)
    match = recognise(blank(spec, layout))
    assert match.spec == spec
    assert match.complete


def test_neighbours_are_not_mixed_up() -> None:
    """B0 and B1 have the same widths; Lite0 has B0's tensors but for squeeze-excite."""
    b0 = blank(B0, "timm")
    lite = {name: tensor for name, tensor in b0.items() if ".se." not in name}
    assert recognise(b0).spec.name == "efficientnet_b0"
    assert recognise(lite).spec.name == "efficientnet_lite0"
    assert recognise(blank(get_spec("efficientnet_b1"), "timm")).spec.name == "efficientnet_b1"
    # A given network is taken only where it fits no worse.
    assert recognise(b0, also=[get_spec("efficientnet_b1"), get_spec("efficientnet_lite0")]).spec == B0


def test_a_given_network_goes_before_a_published_one_of_the_same_tensors() -> None:
    own = replace(B0, name="mine", activation="relu6", image_size=(96, 96))
    assert recognise(blank(B0, "timm"), also=[own]).spec == own


def test_the_files_name_does_not_matter(tmp_path: Path) -> None:
    path = store(blank(B0, "lukemelas"), tmp_path / "efficientnet_b7-torchvision.safetensors")
    checkpoint = open_checkpoint(path)
    assert (checkpoint.kind, checkpoint.layout.name, checkpoint.spec.name) == (
        *("pickle", "lukemelas", "efficientnet_b0"),
    )


@LAYOUTS
def test_a_scaled_network_is_known_where_it_is_given(layout: KeyMap) -> None:
    state = blank(HALF, layout)
    match = recognise(state, also=[HALF])
    assert match.spec == HALF
    assert match.complete
    assert recognise(state).complete is False


def test_a_scaled_network_is_known_from_the_files_header(tmp_path: Path) -> None:
    net = Network(replace(HALF, num_classes=5))
    torch.save(net.state_dict(), tmp_path / "a")
    convert_weights(tmp_path / "a", "timm", tmp_path / "b.safetensors", spec=HALF)
    checkpoint = open_checkpoint(tmp_path / "b.safetensors")
    assert (checkpoint.layout.name, checkpoint.spec) == ("timm", net.spec)
    assert checkpoint.complete
    with pytest.raises(ModelDirError, match=r"is incomplete: .* of efficientnet_b1"):
        convert_weights(tmp_path / "a", "timm", tmp_path / "c.safetensors")


def test_a_first_block_with_an_expansion(tmp_path: Path) -> None:
    """Its parts have other numbers in torchvision's layout than those of all published networks."""
    stages = (replace(B0.stages[0], expand_ratio=2), *B0.stages[1:])
    spec = replace(B0, name="wide start", stages=stages)
    for layout in FORMATS.values():
        match = recognise(blank(spec, layout), also=[spec])
        assert (match.layout, match.spec, match.complete) == (layout, spec, True)


def test_an_unknown_variant_is_said_in_one_line(tmp_path: Path) -> None:
    wide = replace(B0, stages=tuple(replace(s, out_channels=2 * s.out_channels) for s in B0.stages))
    path = store(blank(wide, "timm"), tmp_path / "x")
    with pytest.raises(
        ModelDirError,
        match=r"names are those of the timm layout, but no known network has these shapes; nearest",
    ) as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_unknown_names_are_said_in_one_line(tmp_path: Path) -> None:
    path = store({"conv1.weight": torch.zeros(2), "fc.weight": torch.zeros(3)}, tmp_path / "x")
    with pytest.raises(
        ModelDirError, match=r"of no known layout \(such as conv1\.weight, fc\.weight\)"
    ) as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_partly_fitting_file() -> None:
    state = dict(blank(B0, "timm"))
    del state["bn1.weight"]
    state["conv_head.weight"] = torch.zeros(4, 4)
    state["loss.weight"] = torch.zeros(1)
    match = recognise(state)
    assert match.spec == B0
    assert match.missing == ("stem.norm.weight",)
    assert match.wrong_shape == {"head.conv.weight": ((1280, 320, 1, 1), (4, 4))}
    assert match.unexpected == ("loss.weight",)
    assert not match.complete


# -- wrappers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.net."]
)
@LAYOUTS
def test_wrappers_are_seen_through(layout: KeyMap, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in blank(B0, layout).items()}
    match = recognise({**state, "criterion.weight": torch.zeros(3)})
    assert (match.layout, match.spec) == (layout, B0)
    assert match.unexpected == ("criterion.weight",)


def test_a_strange_prefix_is_no_wrapper() -> None:
    state = {f"teacher_of_another.{name}": tensor for name, tensor in blank(B0, "timm").items()}
    with pytest.raises(ModelDirError, match="of no known layout"):
        recognise(state)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_the_bare_body_of_transformers(prefix: str) -> None:
    """`EfficientNetModel`, without a classifier and without the prefix that it has beside one."""
    body = PUBLISHERS["transformers"].build("efficientnet_b0", 224).get_submodule("efficientnet")
    state = {prefix + name: tensor for name, tensor in body.state_dict().items()}
    match = recognise(state)
    assert (match.layout.name, match.spec) == ("huggingface", replace(B0, num_classes=0))
    assert match.complete


# -- networks of other kinds ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*list_specs("resnet")[:3:2], *list_specs("mobilenet")])
@pytest.mark.parametrize("prefix", ["", "net.", "module."])
def test_other_networks_of_our_own_layout(name: str, prefix: str) -> None:
    spec = replace(get_spec(name), num_classes=7)
    state = {prefix + key: tensor for key, tensor in blank(spec).items()}
    match = recognise(state, also=[get_spec(name)])
    assert match.layout.name == "phiscale"
    assert match.spec == spec
    assert match.complete


def test_a_resnet_that_nobody_named(tmp_path: Path) -> None:
    torch.save(Network(get_spec("resnet18")).state_dict(), tmp_path / "x")
    with pytest.raises(ModelDirError, match="of no known layout"):
        open_checkpoint(tmp_path / "x")
    load_weights(Network(get_spec("resnet18")), tmp_path / "x")


# -- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((f"efficientnet_b{i}", ("symmetric", 1e-5)) for i in range(5)),
        *((f"efficientnet_b{i}", ("symmetric", 1e-3)) for i in (5, 6, 7)),
    ],
)
def test_torchvisions_settings_are_those_of_its_networks(
    name: str, expected: tuple[str, float], tmp_path: Path
) -> None:
    with torch.device("meta"):
        theirs = PUBLISHERS["torchvision"].build(name, 224)
    norms = {(m.eps, m.momentum) for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    checkpoint = open_checkpoint(store(blank(get_spec(name), "torchvision"), tmp_path / "x"))
    assert settings(checkpoint.spec) == expected
    assert norms == {(checkpoint.spec.norm_eps, checkpoint.spec.norm_momentum)}
    assert checkpoint.open_settings == ()


@pytest.mark.parametrize("layout", ["lukemelas", "huggingface", "article"])
def test_settings_of_the_ports_of_the_authors_weights(layout: str, tmp_path: Path) -> None:
    net = create_model("efficientnet_b0", padding="symmetric", norm_eps=1e-5, norm_momentum=0.1)
    report = load_weights(net, store(blank(B0, layout), tmp_path / "x"))
    assert settings(net.spec) == ("same", 1e-3)
    assert net.spec.norm_momentum == 0.01
    assert report.settings["padding"].startswith("same instead of symmetric, as ")


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("tf_efficientnet_b0", ("same", 1e-3)), ("efficientnet_b0", ("symmetric", 1e-5))],
)
def test_a_timm_repository_says_its_settings(
    architecture: str, expected: tuple[str, float], tmp_path: Path
) -> None:
    state = {name: torch.zeros(tensor.shape) for name, tensor in blank(B0, "timm").items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture, "num_classes": 1000}))
    for source in (tmp_path, tmp_path / "model.safetensors"):
        net = create_model("efficientnet_b0", weights=source)
        assert settings(net.spec) == expected


def test_open_settings_stay_the_networks_own(tmp_path: Path) -> None:
    path = store(blank(B0, "timm"), tmp_path / "x")
    assert open_checkpoint(path).open_settings == ("padding", "norm_eps", "norm_momentum")
    net = create_model("efficientnet_b0", padding="symmetric", norm_eps=1e-4)
    report = load_weights(net, path)
    assert settings(net.spec) == ("symmetric", 1e-4)
    assert report.settings["padding"] == "symmetric, the network's own; nothing in the file says it"
    assert "the network's own" in str(report)


def test_create_model_warns_once_of_open_settings(tmp_path: Path) -> None:
    path = store(blank(B0, "timm"), tmp_path / "x")
    with pytest.warns(UserWarning, match="does not say .*padding") as caught:
        net = create_model("efficientnet_b0", weights=path)
    assert len(caught) == 1
    assert settings(net.spec) == ("same", 1e-3)
    with pytest.warns(UserWarning, match="does not say .*norm_eps") as caught:
        net = create_model("efficientnet_b0", weights=path, padding="symmetric")
    assert len(caught) == 1
    assert settings(net.spec) == ("symmetric", 1e-3)
    # Warnings are errors here, so this shows that there is none.
    net = create_model("efficientnet_b0", weights=path, padding="symmetric", norm_eps=1e-5)
    assert settings(net.spec) == ("symmetric", 1e-5)


def test_settings_go_with_a_converted_file(tmp_path: Path) -> None:
    store(blank(B0, "torchvision"), tmp_path / "a")
    convert_weights(tmp_path / "a", "timm", tmp_path / "b.safetensors")
    assert settings(create_model("efficientnet_b0", weights=tmp_path / "b.safetensors").spec) == (
        *("symmetric", 1e-5),
    )
    # What nobody knew is not made up on the way.
    store(blank(B0, "timm"), tmp_path / "c")
    convert_weights(tmp_path / "c", "phiscale", tmp_path / "d.safetensors")
    assert "padding" in open_checkpoint(tmp_path / "d.safetensors").open_settings


def test_a_damaged_spec_in_the_header_is_passed_over(tmp_path: Path) -> None:
    state = {name: torch.zeros(tensor.shape) for name, tensor in blank(B0, "timm").items()}
    save_file(state, tmp_path / "x", metadata={SPEC_KEY: '{"name": 3}'})
    assert open_checkpoint(tmp_path / "x").spec.name == "efficientnet_b0"
