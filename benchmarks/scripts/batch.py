"""Median milliseconds of a batch, in a process that has done nothing else.

    python -m benchmarks.scripts.batch WAY BATCH SIDE THREADS [MODEL_DIRECTORY]

WAY is a key of `WAYS`, or FORMAT-PRECISION of an export in the model directory. Weights of the peers are
random: time does not depend on them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS, WARMUP = 7, 2
NAME = "efficientnet_b0"


def _timm(batch: int, side: int, *, fold: bool = False, compiled: bool = False) -> Callable[[], Any]:
    import timm
    import torch
    from torch import nn

    net: Any = nn.ModuleDict({"network": timm.create_model(NAME)}).eval()
    images = torch.randn(batch, 3, side, side)
    if fold or compiled:
        from benchmarks.peers import _compiled, fold_timm

        if fold:
            fold_timm(net)  # in place
        net = net["network"].to(torch.bfloat16).to(memory_format=torch.channels_last)
        images = images.to(torch.bfloat16).to(memory_format=torch.channels_last)
        return _inference(_compiled(net, images) if compiled else net, images)
    return _inference(net["network"], images)


def _torchvision(batch: int, side: int) -> Callable[[], Any]:
    import torch
    from torchvision.models import efficientnet_b0

    return _inference(efficientnet_b0().eval(), torch.randn(batch, 3, side, side))


def _inference(net: Callable[[Any], Any], images: Any) -> Callable[[], Any]:
    import torch

    return lambda: torch.inference_mode()(net)(images)


def _export(name: str, batch: int, side: int, directory: str) -> Callable[[], Any]:
    from benchmarks.ours import in_threads
    from phiscale.deploy.export_store import list_exports
    from phiscale.deploy.runtimes.base import open_export
    from phiscale.weights.config import read_config

    runtime: Any = next(
        open_export(one)
        for one in list_exports(read_config(directory))
        if f"{one.format}-{one.precision}" == name
    )
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    run = in_threads(runtime.for_throughput())
    return lambda: run(images)


WAYS: dict[str, tuple[str, Callable[[int, int], Callable[[], Any]]]] = {
    "timm": ("timm, eager", _timm),
    "torchvision": ("torchvision", _torchvision),
    "timm-folded": ("timm, folded, channels_last, bf16", lambda n, s: _timm(n, s, fold=True)),
    "timm-compiled": ("timm, torch.compile, frozen, bf16", lambda n, s: _timm(n, s, compiled=True)),
}


def main(way: str, batch: str, side: str, threads: str, directory: str = "") -> None:
    """Time a way and print the median."""
    from benchmarks.measure import limit_threads

    limit_threads(int(threads))
    if way in WAYS:
        call = WAYS[way][1](int(batch), int(side))
    else:
        call = _export(way, int(batch), int(side), directory)
    times = []
    for _ in range(WARMUP + ROUNDS):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    print(statistics.median(times[WARMUP:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
