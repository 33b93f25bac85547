"""Networks at their own sizes beside each other: cost, time on this machine, and reported accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phiscale.deploy.latency import RUNS, Meter
from phiscale.deploy.published_accuracy import Accuracy, published_top1
from phiscale.deploy.timing import Latency
from phiscale.families import FAMILIES
from phiscale.scaling.complexity import Complexity, complexity
from phiscale.spec import NetworkSpec

__all__ = ["BENCHMARKED", "Row", "benchmark", "better_buys", "more_for_less"]

BENCHMARKED = (
    *(f"efficientnet_b{size}" for size in range(4)),
    *(f"efficientnet_lite{size}" for size in range(3)),
    "resnet18",
    "resnet50",
    "mobilenet_v2",
)
# Differences of time that a second measurement may turn round.
TELLING = 1.02
EFFICIENT = ("efficientnet", "efficientnet_lite")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network in the comparison.

    Attributes:
        spec: The network.
        complexity: Its counted cost.
        latency: Its time on this machine.
        accuracy: What is reported of it; None where nothing is known.
        on_front: Whether no other network is faster and at least as accurate, or as fast and more accurate.
    """

    spec: NetworkSpec
    complexity: Complexity
    latency: Latency
    accuracy: Accuracy | None
    on_front: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "network": self.spec.name,
            "image_size": list(self.spec.image_size),
            "params": self.complexity.params,
            "macs": self.complexity.macs,
            "activations": self.complexity.activations,
            "median_ms": self.latency.median_ms,
            "p90_ms": self.latency.p90_ms,
            "images_per_second": self.latency.images_per_second,
            "runs": self.latency.runs,
            "top1": None if self.accuracy is None else self.accuracy.top1,
            "weights": None if self.accuracy is None else self.accuracy.weights,
            "source": None if self.accuracy is None else self.accuracy.source,
            "on_front": self.on_front,
        }


def benchmark(specs: Sequence[NetworkSpec], meter: Meter, *, runs: int = RUNS) -> list[Row]:
    """Measure networks that take turns.

    Args:
        specs: The networks, each at its own image size.
        meter: Measures them.
        runs: How often each runs, about.

    Returns:
        A row for each, in order.
    """
    latencies = meter(specs, runs=runs)
    accuracies = [published_top1(spec.name) for spec in specs]
    points = list(zip(latencies, accuracies, strict=True))
    return [
        Row(
            spec=spec,
            complexity=complexity(spec, meter.batch_size),
            latency=latency,
            accuracy=accuracy,
            on_front=accuracy is not None and not any(_beats(other, (latency, accuracy)) for other in points),
        )
        for spec, (latency, accuracy) in zip(specs, points, strict=True)
    ]


def _beats(one: tuple[Latency, Accuracy | None], other: tuple[Latency, Accuracy]) -> bool:
    if one[1] is None:
        return False
    ms, top1 = one[0].median_ms, one[1].top1
    ms_other, top1_other = other[0].median_ms, other[1].top1
    return ms <= ms_other and top1 >= top1_other and (ms, top1) != (ms_other, top1_other)


def better_buys(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Networks that one of another family beats: faster on this machine, and reported at least as accurate.

    Within a family, reported accuracies differ by recipe more than by size, so they decide nothing.

    Returns:
        Network and better buy, of several the most accurate.
    """
    found = []
    for row in rows:
        better = [
            other
            for other in rows
            if row.accuracy is not None
            and other.accuracy is not None
            and _family(row) != _family(other)
            and other.latency.median_ms * TELLING < row.latency.median_ms
            and other.accuracy.top1 >= row.accuracy.top1
        ]
        if better:
            found.append((row, max(better, key=lambda other: other.accuracy.top1 if other.accuracy else 0.0)))
    return found


def more_for_less(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """EfficientNets that another family's network outruns although it has more multiply-adds to do.

    Returns:
        EfficientNet and faster network, of several the one with the most multiply-adds.
    """
    found = []
    for row in rows:
        faster = [
            other
            for other in rows
            if _family(row) in EFFICIENT
            and _family(other) not in EFFICIENT
            and other.latency.median_ms * TELLING < row.latency.median_ms
            and other.complexity.macs > row.complexity.macs
        ]
        if faster:
            found.append((row, max(faster, key=lambda other: other.complexity.macs)))
    return found


def _family(row: Row) -> str | None:
    """The family of a network; None for a user's own."""
    return next((name for name, specs in FAMILIES.items() if row.spec.name in specs), None)
