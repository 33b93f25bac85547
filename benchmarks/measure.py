"""Clock, machine and threads: what every section measures with."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.progress import Progress

from phiscale.deploy.machine import SHOWN_FLAGS, this_machine

__all__ = ["Timing", "interleave", "limit_threads", "machine", "ratio", "versions"]

# A block of calls of one contender. Long enough that the spinning threads of the one before are asleep.
BLOCK_SECONDS = 0.15
MOST_CALLS = 10
PAUSE_SECONDS = 0.005
BOOTSTRAPS = 2000
PACKAGES = (
    "phiscale",
    "torch",
    "torchvision",
    "timm",
    "efficientnet_pytorch",
    "efficientnet_lite_pytorch",
    "transformers",
    "keras",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "simplejpeg",
    "pillow",
    "numpy",
)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a call takes.

    Attributes:
        rounds_ms: Median milliseconds of a call in each round.
        p90_ms: 90th percentile of all calls, in milliseconds.
    """

    rounds_ms: tuple[float, ...]
    p90_ms: float

    @property
    def median_ms(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rounds_ms)


def interleave(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2, title: str = ""
) -> dict[str, Timing]:
    """Time calls in turn, so that a neighbour's noise hits all alike.

    In every round each contender has a block of calls, of which the first is not counted: it finds the caches
    full of another's weights.

    Args:
        calls: What to time, by name.
        rounds: How many blocks each has.
        warmup: Calls before the first round.
        title: What the progress bar says.
    """
    lengths = {name: _block_length(call, warmup) for name, call in calls.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    order = list(calls)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for _ in progress.track(range(rounds), description=title):
            for name in order:
                times[name].append(_block(calls[name], lengths[name]))
            # Who runs after whom changes, as some leave the processor warmer than others.
            order = order[1:] + order[:1]
    return {name: _timing(blocks) for name, blocks in times.items()}


def _block_length(call: Callable[[], object], warmup: int) -> int:
    for _ in range(max(1, warmup)):
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
    return min(MOST_CALLS, max(1, int(BLOCK_SECONDS / max(seconds, 1e-6))))


def _block(call: Callable[[], object], length: int) -> list[float]:
    time.sleep(PAUSE_SECONDS)
    call()
    times = []
    for _ in range(length):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    return times


def _timing(blocks: Sequence[Sequence[float]]) -> Timing:
    every = sorted(value for block in blocks for value in block)
    return Timing(
        rounds_ms=tuple(statistics.median(block) for block in blocks),
        p90_ms=every[min(len(every) - 1, int(0.9 * len(every)))],
    )


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, float, float]:
    """Median of the rounds' ratios, with its interval of 95 % by bootstrap over rounds.

    Args:
        numerator: A time per round.
        denominator: Another's, of the same rounds.

    Returns:
        Median, lower end, upper end.

    Examples:
        >>> ratio([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
        (2.0, 2.0, 2.0)
    """
    ratios = [top / bottom for top, bottom in zip(numerator, denominator, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(BOOTSTRAPS))
    low, high = int(0.025 * BOOTSTRAPS), int(0.975 * BOOTSTRAPS) - 1
    return statistics.median(ratios), medians[low], medians[high]


def limit_threads(threads: int) -> None:
    """Give this process, and those that it starts, so many cores and as many threads.

    Engines that count the cores they may use, and those that are told, then have the same.

    Args:
        threads: How many.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:threads])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    import torch

    torch.set_num_threads(threads)


def machine(threads: int) -> dict[str, Any]:
    """The machine without its name: processor, instruction sets, memory, and how busy it was."""
    import torch

    this = this_machine()
    return {
        "processor": this.processor,
        "details": this.details,
        "instructions": [flag for flag in SHOWN_FLAGS if flag in this.flags],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": this.cores,
        "threads": threads,
        "memory_gib": _memory_gib(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
