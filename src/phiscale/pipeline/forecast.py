"""How long a run will take, from a few steps on made-up images."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from phiscale.nn.network import Network
from phiscale.pipeline.plan import FitPlan
from phiscale.training.allocator import keep_freed_memory
from phiscale.training.fast_layers import fast_layers
from phiscale.training.tune import sample_size

__all__ = ["seconds_per_epoch"]

WARM_UP_STEPS, MEASURED_STEPS = 2, 3


def seconds_per_epoch(plan: FitPlan) -> float:
    """Estimate the time of one epoch, with validation.

    A network of its own takes a few steps, in the recipe's precision and layers, of which the last are timed,
    so the run that follows is not touched. On a CPU they are of a part of a batch. Loading of images comes on
    top where it is slower than the network.

    Args:
        plan: The run to forecast.

    Returns:
        Seconds.
    """
    train, val = len(plan.source.split("train")), len(plan.source.split("val"))
    recipe, spec = plan.recipe, plan.spec
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = sample_size(spec.image_size, min(recipe.batch_size, train), device)
    keep_freed_memory()  # as the run will
    with torch.random.fork_rng():
        net = Network(spec).to(device)
        images = torch.rand(batch, spec.in_channels, *spec.image_size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(batch, dtype=torch.long, device=device)
        mixed = recipe.precision == "bf16-mixed"

        def forward() -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                logits: Tensor = net(images)
            return logits.float()

        with fast_layers(net, enabled=recipe.fast_layers):
            step = _time(lambda: F.cross_entropy(forward(), labels).backward())  # type: ignore[no-untyped-call]
        net.eval()
        with torch.inference_mode():
            validation = _time(forward)
    return step * math.ceil(train / batch) + validation * math.ceil(val / batch)


def _time(step: Callable[[], object]) -> float:
    """Median seconds of one call, after some that are not counted."""
    seconds = []
    for _ in range(WARM_UP_STEPS + MEASURED_STEPS):
        began = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARM_UP_STEPS:])
