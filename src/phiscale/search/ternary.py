"""The grid in a triangle: how much of the growth goes into depth, width and resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from phiscale.scaling.compound import CompoundRule
from phiscale.search.coefficients import CoefficientResult
from phiscale.search.grid import PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_ternary", "shares"]

_CORNERS = ((0.5, math.sqrt(3) / 2), (0.0, 0.0), (1.0, 0.0))  # depth, width, resolution
_GREY = "#777777"


def shares(rule: CompoundRule) -> tuple[float, float, float]:
    """How the growth α·β²·γ² divides between depth, width and resolution, by logarithms.

    Returns:
        Three shares that sum to one; (1, 0, 0) grows in depth alone.

    Examples:
        >>> shares(CompoundRule(alpha=2.0, beta=1.0, gamma=1.0))
        (1.0, 0.0, 0.0)
    """
    parts = (math.log(rule.alpha), 2 * math.log(rule.beta), 2 * math.log(rule.gamma))
    whole = math.fsum(parts)
    return (parts[0] / whole, parts[1] / whole, parts[2] / whole)


def draw_ternary(figure: Figure, result: CoefficientResult) -> None:
    """Draw every candidate's top-1 of the first rung, in which all were trained for as long.

    The rules that round to one network are joined by a line. A cross is a network that misses the cost
    target; a ring is the winner, a star the paper's rule.

    Args:
        figure: An empty figure.
        result: What the search came to.
    """
    axis = figure.subplots()
    _draw_frame(axis)
    plan = result.plan
    for dropped in plan.dropped:
        axis.scatter(*_points(dropped.rules), marker="x", s=14, color="#bbbbbb", linewidths=0.8)
    x, y, values = [], [], []
    for ranked in result.ranking:
        xs, ys = _points(ranked.candidate.rules)
        axis.plot(xs, ys, color=_GREY, linewidth=0.6, zorder=1)
        x.extend(xs)
        y.extend(ys)
        values.extend([100 * ranked.first_top1.mean] * len(xs))
    dots = axis.scatter(x, y, c=values, cmap="viridis", s=70, edgecolors="white", linewidths=0.6, zorder=2)
    axis.scatter(
        *_points([result.rule]), s=190, facecolors="none", edgecolors="#cc3344", linewidths=2, zorder=3
    )
    axis.scatter(*_points([PAPER]), marker="*", s=36, color="black", zorder=4)
    epochs = f"{plan.rungs[0]} epoch{'s' if plan.rungs[0] > 1 else ''}"
    figure.colorbar(dots, ax=axis, shrink=0.7, label=f"top-1 after {epochs}, %")
    rule = result.rule
    axis.set_title(
        f"{plan.baseline.name}: α = {rule.alpha:g}, β = {rule.beta:g}, γ = {rule.gamma:g} (ring); "
        "the paper's (star)",
        fontsize=10,
        pad=24,
    )


def _draw_frame(axis: Axes) -> None:
    """The triangle with its corners named and a line at every quarter."""
    axis.set_aspect("equal")
    axis.set_axis_off()
    axis.plot(*_closed(_CORNERS), color="black", linewidth=1, zorder=0)
    for share in (0.25, 0.5, 0.75):
        for first in range(3):
            ends = []
            for other in ((first + 1) % 3, (first + 2) % 3):
                weights = [0.0, 0.0, 0.0]
                weights[first], weights[other] = share, 1 - share
                ends.append(_place(weights))
            (x0, y0), (x1, y1) = ends
            axis.plot([x0, x1], [y0, y1], color="#dddddd", linewidth=0.6, zorder=0)
    (dx, dy), (wx, wy), (rx, ry) = _CORNERS
    axis.text(dx, dy + 0.03, "depth", ha="center", va="bottom")
    axis.text(wx, wy - 0.03, "width", ha="center", va="top")
    axis.text(rx, ry - 0.03, "resolution", ha="center", va="top")


def _points(rules: Sequence[CompoundRule]) -> tuple[list[float], list[float]]:
    places = [_place(shares(rule)) for rule in rules]
    return [x for x, _ in places], [y for _, y in places]


def _place(weights: Sequence[float]) -> tuple[float, float]:
    x = math.fsum(weight * corner[0] for weight, corner in zip(weights, _CORNERS, strict=True))
    y = math.fsum(weight * corner[1] for weight, corner in zip(weights, _CORNERS, strict=True))
    return x, y


def _closed(corners: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    around = [*corners, corners[0]]
    return [x for x, _ in around], [y for _, y in around]
