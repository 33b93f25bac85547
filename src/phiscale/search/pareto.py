"""Cost against accuracy: which networks no other one beats in both, and a picture of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CloudPoint", "dominates", "draw_pareto", "pareto_front"]

T = TypeVar("T")
Place = tuple[float, float]
"""Cost, the less the better, and top-1, the more the better."""

BLUE, RED, GREY = "#4477aa", "#cc3344", "#999999"


def dominates(first: Place, second: Place) -> bool:
    """Whether one (cost, top1) is nowhere worse than another and somewhere better.

    Examples:
        >>> dominates((10, 0.9), (10, 0.8)), dominates((10, 0.9), (10, 0.9))
        (True, False)
    """
    return first != second and first[0] <= second[0] and first[1] >= second[1]


def pareto_front(items: Sequence[T], place: Callable[[T], Place]) -> list[T]:
    """The items that no other dominates, from the cheapest to the dearest.

    Of items in the same place all are kept.

    Args:
        items: Any things.
        place: Gives an item's (cost, top1).

    Examples:
        >>> pareto_front([(1, 0.5), (2, 0.4), (3, 0.6)], place=lambda item: item)
        [(1, 0.5), (3, 0.6)]
    """
    front: list[T] = []
    for item in sorted(items, key=lambda item: (place(item)[0], -place(item)[1])):
        # All that came before cost no more, and of those the last on the front is the best.
        if not front or place(item)[1] > place(front[-1])[1] or place(item) == place(front[-1]):
            front.append(item)
    return front


@dataclass(frozen=True, kw_only=True)
class CloudPoint:
    """A network in the picture.

    Attributes:
        cost: Its cost, in the unit of the axis.
        top1: Its accuracy in [0, 1].
        low: Lower end of the accuracy's confidence interval, where there is one.
        high: Upper end.
    """

    cost: float
    top1: float
    low: float | None = None
    high: float | None = None


def draw_pareto(
    figure: Figure,
    proxies: Sequence[CloudPoint],
    finals: Sequence[CloudPoint],
    *,
    best: CloudPoint,
    reference: CloudPoint | None,
    target: float,
    cost_label: str,
) -> None:
    """Draw all networks of a search over their cost, with both fronts.

    Args:
        figure: An empty figure.
        proxies: All candidates, as their short training scored them.
        finals: Those that were trained in full.
        best: The one that was chosen, from `finals`.
        reference: The template of the search, trained in full.
        target: The cost that was aimed at.
        cost_label: What the cost is, with its unit.
    """
    from matplotlib.ticker import EngFormatter

    left, right = figure.subplots(1, 2)
    for axes, points, title in ((left, proxies, "short trainings"), (right, finals, "full trainings")):
        _draw_cloud(axes, points)
        axes.axvline(target, color=GREY, linewidth=0.8, linestyle=":")
        axes.set(title=f"{title} ({len(points)})", xlabel=cost_label, ylabel="validation top-1 [%]")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
    if reference is not None:
        right.plot(reference.cost, 100 * reference.top1, "s", color=GREY, markersize=8, label="template")
    right.plot(best.cost, 100 * best.top1, "*", color=RED, markersize=14, label="chosen")
    right.legend()


def _draw_cloud(axes: Axes, points: Sequence[CloudPoint]) -> None:
    axes.plot(
        [p.cost for p in points], [100 * p.top1 for p in points], "o", color=BLUE, alpha=0.45, markersize=4
    )
    for p in points:
        if p.low is not None and p.high is not None:
            axes.plot([p.cost, p.cost], [100 * p.low, 100 * p.high], color=BLUE, linewidth=0.8)
    front = pareto_front(points, place=lambda p: (p.cost, p.top1))
    # A step: between two networks of the front, only the cheaper one can be had.
    axes.step([p.cost for p in front], [100 * p.top1 for p in front], where="post", color=BLUE, linewidth=1.2)
