"""How large a difference a few seeds can show, from the spread of all arms of a comparison together.

The spread of top-1 from seed to seed is estimated from all arms at once (pooled), since three or five seeds
of one arm alone say little of it. Seeds are not paired: two networks of different shapes share no initial
weights, so an equal seed gives them nothing in common but the order of the images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from phiscale.errors import require
from phiscale.search.statistics import Interval

__all__ = ["Spread", "detectable_difference", "difference", "pool"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The standard deviation between seeds.

    Attributes:
        std: Pooled over the groups, in the unit of the values.
        degrees: Degrees of freedom: values less groups.
    """

    std: float
    degrees: int


def pool(groups: Sequence[Sequence[float]]) -> Spread | None:
    """The common standard deviation of groups that may have different means.

    Args:
        groups: The values of each arm, one per seed.

    Returns:
        None where no group has two values, so that nothing is known of the spread.

    Examples:
        >>> pool([[0.80, 0.82], [0.90, 0.92]]).degrees
        2
    """
    degrees = sum(len(values) - 1 for values in groups if values)
    if degrees == 0:
        return None
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in groups if len(values) > 1)
    return Spread(std=math.sqrt(squares / degrees), degrees=degrees)


def difference(
    first: Sequence[float], second: Sequence[float], spread: Spread | None, level: float = 0.95
) -> Interval:
    """Confidence interval of mean(first) - mean(second), by Student's t with a pooled spread.

    Args:
        first: Values of one arm.
        second: Values of the other.
        spread: From `pool`; None gives no interval.
        level: Confidence, in (0, 1).

    Raises:
        MissingDependencyError: scipy is not installed.
    """
    mean, count = statistics.fmean(first) - statistics.fmean(second), min(len(first), len(second))
    if spread is None:
        return Interval(mean=mean, low=None, high=None, std=None, count=count, level=level)
    t = float(require("scipy.stats", extra="search").t.ppf((1 + level) / 2, df=spread.degrees))
    half = t * spread.std * math.sqrt(1 / len(first) + 1 / len(second))
    return Interval(mean=mean, low=mean - half, high=mean + half, std=spread.std, count=count, level=level)


def detectable_difference(spread: Spread, count: int, *, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference of two arms that the seeds would probably have shown.

    With it, a two-sided t-test at 1 - `level` finds a difference in a share `power` of such studies. It is
    exact for normal values (noncentral t), and as uncertain as the spread that it is made from.

    Args:
        spread: From `pool`.
        count: Seeds of each arm.
        level: Confidence of the test, in (0, 1).
        power: Wanted share of studies that show it, above 1 - `level`.

    Returns:
        The difference in the unit of the values.

    Raises:
        MissingDependencyError: scipy is not installed.

    Examples:
        >>> round(detectable_difference(Spread(std=0.01, degrees=8), 5), 4)
        0.0202
    """
    stats, optimize = require("scipy.stats", extra="search"), require("scipy.optimize", extra="search")
    critical = stats.t.ppf((1 + level) / 2, df=spread.degrees)

    def missing_power(effect: float) -> float:
        # The other tail is left out: with the power of interest it holds nothing.
        return float(stats.nct.sf(critical, spread.degrees, effect)) - power

    effect = float(optimize.brentq(missing_power, 0.0, critical + 20.0))
    return effect * spread.std * math.sqrt(2 / count)
