"""Estimated memory and file size against what torch allocates and safetensors writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile

from phiscale.families import get_spec, list_specs
from phiscale.nn.network import Network
from phiscale.scaling.complexity import complexity
from phiscale.spec import NetworkSpec

# The first is promised, for any shape; at the published sizes the count is nearly exact.
MARGIN = 0.15
INFERENCE_MARGIN = 0.02
TRAINING_MARGIN = 0.05


def peak_bytes(run: Callable[[], None]) -> int:
    """The most bytes of tensors alive at once while something runs, nothing before it counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    memory = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    alive = peak = 0
    for event in memory:
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def infer(spec: NetworkSpec, batch_size: int) -> None:
    net = Network(spec).eval()
    x = torch.randn(batch_size, spec.in_channels, *spec.image_size)
    with torch.inference_mode():
        net(x)


def train(spec: NetworkSpec, batch_size: int, *, checkpointing: bool = False) -> None:
    net = Network(spec)
    net.set_grad_checkpointing(checkpointing)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    # The first step makes the optimiser's state; small images, or it would cost as much as the second.
    for size, images in (((spec.output_stride, spec.output_stride), 2), (spec.image_size, batch_size)):
        x = torch.randn(images, spec.in_channels, *size)
        loss = F.cross_entropy(net(x), torch.zeros(images, dtype=torch.long))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


INFERENCE = [
    ("efficientnet_b0", 1),
    ("efficientnet_b0", 8),
    ("efficientnet_b3", 1),
    ("efficientnet_b3", 4),
    ("efficientnet_lite0", 4),
    ("mobilenet_v1", 4),
    ("mobilenet_v2", 4),
    ("resnet18", 2),
    ("resnet50", 2),
]


@pytest.mark.parametrize(("name", "batch_size"), INFERENCE)
def test_inference(name: str, batch_size: int) -> None:
    spec = get_spec(name)
    measured = peak_bytes(lambda: infer(spec, batch_size))
    assert complexity(spec, batch_size).inference_bytes == pytest.approx(measured, rel=INFERENCE_MARGIN)


TRAINING = [
    ("efficientnet_b0", 2),
    ("efficientnet_b0", 8),
    ("efficientnet_b3", 2),
    ("efficientnet_b3", 4),
    ("efficientnet_lite0", 4),
    ("mobilenet_v1", 4),
    ("mobilenet_v2", 4),
    ("resnet18", 4),
    ("resnet50", 2),
]


@pytest.mark.parametrize(("name", "batch_size"), TRAINING)
def test_training(name: str, batch_size: int) -> None:
    spec = get_spec(name)
    measured = peak_bytes(lambda: train(spec, batch_size))
    estimated = complexity(spec, batch_size, optimizer_states=1).training_bytes
    assert estimated == pytest.approx(measured, rel=TRAINING_MARGIN)


@pytest.mark.parametrize("size", [(97, 131), (64, 256)])
@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v2", "resnet18"])
def test_other_shapes(name: str, size: tuple[int, int]) -> None:
    spec = replace(get_spec(name), image_size=size, conv_bias=True, in_channels=4, num_classes=10)
    cost = complexity(spec, 4, optimizer_states=1)
    assert cost.inference_bytes == pytest.approx(peak_bytes(lambda: infer(spec, 4)), rel=MARGIN)
    assert cost.training_bytes == pytest.approx(peak_bytes(lambda: train(spec, 4)), rel=MARGIN)


def test_without_skips() -> None:
    b0 = get_spec("efficientnet_b0")
    spec = replace(b0, stages=tuple(replace(stage, skip=False) for stage in b0.stages))
    cost = complexity(spec, 2, optimizer_states=1)
    assert cost.inference_bytes == pytest.approx(peak_bytes(lambda: infer(spec, 2)), rel=INFERENCE_MARGIN)
    assert cost.training_bytes == pytest.approx(peak_bytes(lambda: train(spec, 2)), rel=TRAINING_MARGIN)


def test_checkpointing_saves_memory() -> None:
    spec = replace(get_spec("efficientnet_b0"), image_size=(96, 96))
    plain = peak_bytes(lambda: train(spec, 16))
    assert peak_bytes(lambda: train(spec, 16, checkpointing=True)) < 0.6 * plain


@pytest.mark.parametrize(
    ("name", "batch_size"), [("efficientnet_b0", 16), ("mobilenet_v2", 8), ("resnet50", 4)]
)
def test_checkpointing(name: str, batch_size: int) -> None:
    spec = replace(get_spec(name), image_size=(96, 96))
    measured = peak_bytes(lambda: train(spec, batch_size, checkpointing=True))
    cost = complexity(spec, batch_size, optimizer_states=1, grad_checkpointing=True)
    assert cost.training_bytes == pytest.approx(measured, rel=MARGIN)
    assert cost.inference_bytes == complexity(spec, batch_size).inference_bytes


@pytest.mark.parametrize("name", [name for name in list_specs() if not name.endswith(("b7", "b8", "l2"))])
def test_the_weight_file(name: str, tmp_path: Path) -> None:
    spec = get_spec(name)
    path = tmp_path / "model.safetensors"
    state = {key: tensor.contiguous() for key, tensor in Network(spec).state_dict().items()}
    save_file(state, path)
    assert complexity(spec).file_bytes == pytest.approx(path.stat().st_size, rel=0.01)
