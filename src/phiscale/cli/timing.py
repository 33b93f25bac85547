"""Measuring for commands: the meter that options ask for, a line for each measurement, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from phiscale.cli.output import console
from phiscale.cli.units import format_count
from phiscale.scaling.complexity import complexity
from phiscale.spec import NetworkSpec

if TYPE_CHECKING:
    from phiscale.deploy.latency import LatencyMeter
    from phiscale.deploy.setting import Engine
    from phiscale.deploy.timing import Latency

__all__ = ["latency_limit", "make_meter", "print_timing"]


def latency_limit(latency_ms: float | None, images_per_second: float | None, batch_size: int) -> float | None:
    """Milliseconds a run that both options allow; None where neither is given."""
    if images_per_second is None:
        return latency_ms
    from phiscale.deploy.latency_budget import milliseconds_for

    enough = milliseconds_for(images_per_second, batch_size)
    return enough if latency_ms is None else min(latency_ms, enough)


def make_meter(
    runtime: str | None,
    precision: str,
    threads: int | None,
    batch_size: int,
    *,
    fresh: bool = False,
    show: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyMeter:
    """The meter that options ask for.

    Args:
        runtime: The engine; None is the first that is installed.
        precision: What it computes in.
        threads: Threads of a run; None is one for each core.
        batch_size: Images in a run.
        fresh: Whether to measure again what is known.
        show: Whether every measurement has a line on standard error.
        progress: Called within a measurement, with the steps that are done and with how many there are.

    Raises:
        ModelDirError: There is no such engine, or it does not compute in this precision.
        MissingDependencyError: The engine is not installed.
    """
    from phiscale.deploy.latency import LatencyMeter
    from phiscale.deploy.runtimes.base import cores
    from phiscale.deploy.setting import Setting, default_engine

    setting = Setting(
        runtime=cast("Engine", runtime or default_engine()),  # checked there
        precision=precision,
        threads=threads or cores(),
        batch_size=batch_size,
    )
    numbers = count(1)

    def report(spec: NetworkSpec, latency: Latency) -> None:
        height, width = spec.image_size
        busy = "" if latency.is_steady else "; the machine is busy"
        # Made anew for each line: a progress bar, while it is drawn, stands in for standard error.
        console(stderr=True).print(
            f"measured {next(numbers):2}  {spec.name} at {height}×{width} px, "
            f"{format_count(complexity(spec).macs)} multiply-adds: "
            f"{latency.median_ms:.3g} ms (p90 {latency.p90_ms:.3g}){busy}"
        )

    return LatencyMeter(setting, fresh=fresh, on_measured=report if show else None, progress=progress)


def print_timing(timing: Mapping[str, Any]) -> None:
    """Print what `LatencyFit.timing` says."""
    out = console()
    out.print(
        f"  takes {timing['median_ms']:.3g} ms (median; p90 {timing['p90_ms']:.3g} ms), "
        f"{timing['images_per_second']:.3g} images/s"
    )
    if timing["next"] is not None:
        following = timing["next"]
        height, width = following["image_size"]
        out.print(
            f"  the next larger, φ = {following['phi']:.4g} at {height}×{width} px, "
            f"takes {following['median_ms']:.3g} ms"
        )
    number = timing["measurements"]
    known = f"{number} measurement{'' if number == 1 else 's'}" if number else "all measured before"
    out.print(f"  with {timing['where']}; {known}", soft_wrap=True)
