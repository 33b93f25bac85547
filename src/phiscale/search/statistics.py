"""What a few seeds can say: means with confidence intervals by Student's t distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from phiscale.errors import require

__all__ = ["Interval", "confidence_interval", "paired_difference"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and where the true one lies.

    Attributes:
        mean: Arithmetic mean.
        low: Lower end; None with fewer than two values, which say nothing about their spread.
        high: Upper end; None with fewer than two values.
        std: Standard deviation with n - 1; None with fewer than two values.
        count: Number of values.
        level: Confidence, in (0, 1).
    """

    mean: float
    low: float | None
    high: float | None
    std: float | None
    count: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def confidence_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and confidence interval of a normal population's mean: m ± t · s / √n.

    The interval is not cut at 0 or 1, which shares cannot pass.

    Args:
        values: At least one finite number.
        level: Confidence, in (0, 1).

    Raises:
        ValueError: There is no value, one is not finite, or `level` lies outside (0, 1).
        MissingDependencyError: scipy is not installed.

    Examples:
        >>> interval = confidence_interval([0.80, 0.82, 0.84])
        >>> round(interval.mean, 4), round(interval.low, 4), round(interval.high, 4)
        (0.82, 0.7703, 0.8697)
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"need at least one finite value, got {list(values)!r}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}")
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Interval(mean=mean, low=None, high=None, std=None, count=1, level=level)
    std = statistics.stdev(values)
    t = float(require("scipy.stats", extra="search").t.ppf((1 + level) / 2, df=count - 1))
    half = t * std / math.sqrt(count)
    return Interval(mean=mean, low=mean - half, high=mean + half, std=std, count=count, level=level)


def paired_difference(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """Confidence interval of the mean of first - second, pair by pair, such as seed by seed.

    Args:
        first: Values of one thing.
        second: Values of the other under the same conditions, in the same order.
        level: Confidence, in (0, 1).

    Raises:
        ValueError: They are not of one length, or as for `confidence_interval`.
        MissingDependencyError: scipy is not installed.
    """
    return confidence_interval([a - b for a, b in zip(first, second, strict=True)], level)
