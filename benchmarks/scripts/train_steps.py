"""Steps of training EfficientNet-B0 in a process that has done nothing else; prints JSON.

    python -m benchmarks.scripts.train_steps WAY BATCH SIDE THREADS STEPS

WAY is a key of `WAYS`. Everybody trains with SGD and momentum on random images and weights, on which the time
does not depend. Printed are the milliseconds of each step after the warm-up, the peak of resident memory in
bytes, and how this project trained where it was left to choose.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "efficientnet_b0"
WARMUP = 2  # torch.compile compiles in the first


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a library's network is trained.

    Attributes:
        name: In tables.
        library: timm, torchvision or phiscale.
        channels_last: Whether network and images are in that layout.
        mixed: Whether under bf16 autocast.
        compiled: Whether by torch.compile.
        fast_layers: Whether by this project's fast layers.
        tuned: Whether this project chooses the two by itself.
    """

    name: str
    library: str
    channels_last: bool = False
    mixed: bool = False
    compiled: bool = False
    fast_layers: bool = False
    tuned: bool = False


WAYS = {
    "timm": Setup(name="timm", library="timm"),
    "timm-cl": Setup(name="timm, channels_last", library="timm", channels_last=True),
    "timm-bf16": Setup(name="timm, channels_last, bf16", library="timm", channels_last=True, mixed=True),
    "timm-compiled": Setup(
        name="timm, channels_last, compiled", library="timm", channels_last=True, compiled=True
    ),
    "torchvision": Setup(name="torchvision", library="torchvision"),
    "torchvision-cl": Setup(name="torchvision, channels_last", library="torchvision", channels_last=True),
    "ours-plain": Setup(name="phiscale, tune off", library="phiscale", channels_last=True),
    "ours": Setup(name="phiscale, as it comes", library="phiscale", channels_last=True, tuned=True),
}


def network(library: str, side: int) -> Any:
    """B0 of a library, in train mode."""
    if library == "timm":
        import timm

        return timm.create_model(NAME).train()
    if library == "torchvision":
        from torchvision.models import efficientnet_b0

        return efficientnet_b0().train()
    import phiscale

    return phiscale.create_model(NAME, image_size=side)


def prepare(setup: Setup, batch: int, side: int) -> tuple[Callable[[], Any], str]:
    """A step, and how this project chose to train."""
    import contextlib

    import torch
    from torch.nn.functional import cross_entropy

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = network(setup.library, side).to(device)
    mixed, fast, chosen = setup.mixed, setup.fast_layers, ""
    stack = contextlib.ExitStack()  # never closed: the process ends with it
    if setup.library == "phiscale":
        from phiscale.training.allocator import keep_freed_memory
        from phiscale.training.fast_layers import fast_layers
        from phiscale.training.recipe import Recipe
        from phiscale.training.tune import tune

        keep_freed_memory()
        if setup.tuned:
            tuning = tune(network("phiscale", side), Recipe(batch_size=batch), device=device)
            chosen = str(tuning)
            mixed, fast = tuning.recipe.precision == "bf16-mixed", tuning.recipe.fast_layers
        stack.enter_context(fast_layers(net, enabled=fast))
    images, labels = torch.randn(batch, 3, side, side, device=device), torch.arange(batch, device=device)
    if setup.channels_last:
        net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    forward = torch.compile(net) if setup.compiled else net

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            logits = forward(images)
        cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step.keep = stack  # type: ignore[attr-defined]
    return step, chosen


def peak_bytes() -> int:
    """Of resident memory, or of the GPU's where the network is there."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage gives is at least that of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def main(way: str, batch: str, side: str, threads: str, steps: str) -> None:
    """Train and print."""
    from benchmarks.measure import limit_threads

    limit_threads(int(threads))
    step, chosen = prepare(WAYS[way], int(batch), int(side))
    times = []
    for _ in range(WARMUP + int(steps)):
        began = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - began))
    print(json.dumps({"steps_ms": times[WARMUP:], "peak_bytes": peak_bytes(), "chosen": chosen}))


if __name__ == "__main__":
    main(*sys.argv[1:])
