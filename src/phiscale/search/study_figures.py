"""The figures of a study in the form of the paper's: top-1 over counted multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from phiscale.scaling.complexity import complexity
from phiscale.search.arms import Arm
from phiscale.search.statistics import Interval
from phiscale.search.study import COMPOUND, SINGLE, Part, StudyResult, Table
from phiscale.spec import NetworkSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "INK", "SIZES", "STYLE"]

# One colour for all that is neither a curve nor a grid, so that a page can exchange it.
INK = "#1b1c1d"
# matplotlib's settings for drawing and saving; text stays text, and equal figures give equal files.
STYLE: Mapping[str, object] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "phiscale",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
COLOURS: Mapping[str, str] = {
    "width": "#4477aa",
    "depth": "#229954",
    "resolution": "#b8860b",
    COMPOUND: "#cc3344",
    "dWr": "#8e5bb5",
}
GREY = "#888888"
CURVE_COLOURS = ("#4477aa", "#229954", "#b8860b", "#cc3344")
LETTERS: Mapping[str, str] = {"width": "w", "depth": "d", "resolution": "r"}
SIZES: Mapping[Table, tuple[float, float]] = {
    "table7": (6.4, 2.6),
    "figure3": (9.0, 3.0),
    "figure4": (6.0, 4.0),
    "figure8": (6.0, 4.0),
    "table3": (8.0, 3.4),
}
"""Inches of each figure."""

Point = tuple[float, Interval]
"""Millions of multiply-adds, and top-1."""


def _draw_table7(figure: Figure, result: StudyResult) -> None:
    """The arms of the dearest level, one below the other, each with its interval and all its seeds."""
    part = result.plan.of_kind("levels")[-1]
    _draw_arms(figure.subplots(), result, part)


def _draw_table3(figure: Figure, result: StudyResult) -> None:
    parts = result.plan.of_kind("families")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, part in zip(axes, parts, strict=True):
        _draw_arms(axis, result, part)
        axis.set_title(part.title, loc="left", fontsize=9)


def _draw_arms(axis: Axes, result: StudyResult, part: Part) -> None:
    comparison = part.comparison
    rows = [("baseline", comparison.baseline), *((arm.name, arm.spec) for arm in comparison.arms)]
    for row, (name, spec) in enumerate(rows):
        measured, colour = result.of(spec), COLOURS.get(name, GREY)
        axis.plot([100 * v for v in measured.values], [row] * len(measured.values), "|", color=colour)
        _error_bars(axis, [(100 * measured.top1.mean, row)], [measured.top1], colour, horizontal=True)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.invert_yaxis()
    axis.set_xlabel("top-1, %")
    axis.grid(axis="x", color=GREY, alpha=0.25)


def _draw_figure3(figure: Figure, result: StudyResult) -> None:
    """One panel for each dimension, as in Figure 3; each point has its factor."""
    axes = figure.subplots(1, 3, sharey=True)
    base = _baseline_point(result, result.plan.baseline)
    for axis, name in zip(axes, ("width", "depth", "resolution"), strict=True):
        points = [base]
        _annotate(axis, base, f"{LETTERS[name]}=1")
        for index, arm in enumerate(_arms(result.plan.of_kind("levels"), name)):
            points.append(_point(result, arm))
            text = f"{LETTERS[name]}={getattr(arm.scaling, name):.3g}{'*' if arm.fine else ''}"
            # Neighbours may be close: one above the curve, the next below.
            _annotate(axis, points[-1], text, above=index % 2 == 0)
        _curve(axis, points, COLOURS[name])
        axis.set_title(name, loc="left", fontsize=9)
        _label(axis)
    for axis in axes[1:]:
        axis.set_ylabel("")


def _draw_figure4(figure: Figure, result: StudyResult) -> None:
    """Width swept at four depths and resolutions, as in Figure 4."""
    axis, parts = figure.subplots(), result.plan.of_kind("widths")
    names = list(dict.fromkeys(arm.name for part in parts for arm in part.comparison.arms))
    for index, (name, colour) in enumerate(zip(sorted(names), CURVE_COLOURS, strict=False)):
        arms = list(_arms(parts, name))
        points = [_point(result, arm) for arm in arms]
        for arm, point in zip(arms, points, strict=True):
            _annotate(axis, point, f"w={arm.scaling.width:.2g}", above=index % 2 == 0)
        _curve(axis, points, colour, label=name)
    _finish(axis)


def _draw_figure8(figure: Figure, result: StudyResult) -> None:
    """A curve for each way to scale, as in Figure 8."""
    axis, parts = figure.subplots(), result.plan.of_kind("levels")
    base = _baseline_point(result, result.plan.baseline)
    for name in (*SINGLE, "dWr", COMPOUND):
        points = [base, *(_point(result, arm) for arm in _arms(parts, name))]
        if len(points) > 1:
            _curve(axis, points, COLOURS[name], label=name, width=2.2 if name == COMPOUND else 1.3)
    _finish(axis)


FIGURES: Mapping[Table, Callable[[Figure, StudyResult], None]] = {
    "table7": _draw_table7,
    "figure3": _draw_figure3,
    "figure4": _draw_figure4,
    "figure8": _draw_figure8,
    "table3": _draw_table3,
}
"""What draws each table and figure into an empty figure; made within `STYLE`."""


# ------------------------------------------------------------------------------------------ parts


def _arms(parts: Sequence[Part], name: str) -> Iterator[Arm]:
    """The arms of one direction, in the order of their cost."""
    for part in parts:
        arm = part.comparison.arm(name)
        if arm is not None:
            yield arm


def _point(result: StudyResult, arm: Arm) -> Point:
    return arm.macs / 1e6, result.of(arm.spec).top1


def _baseline_point(result: StudyResult, spec: NetworkSpec) -> Point:
    return complexity(spec).macs / 1e6, result.of(spec).top1


def _curve(
    axis: Axes, points: Sequence[Point], colour: str, *, label: str | None = None, width: float = 1.3
) -> None:
    places = [(macs, 100 * top1.mean) for macs, top1 in points]
    axis.plot(
        [x for x, _ in places], [y for _, y in places], color=colour, linewidth=width, label=label, zorder=2
    )
    _error_bars(axis, places, [top1 for _, top1 in points], colour)


def _error_bars(
    axis: Axes,
    places: Sequence[tuple[float, float]],
    intervals: Sequence[Interval],
    colour: str,
    *,
    horizontal: bool = False,
) -> None:
    """Points with the ends of their intervals, where there are any."""
    axis.plot([x for x, _ in places], [y for _, y in places], "o", color=colour, markersize=4, zorder=3)
    for (x, y), interval in zip(places, intervals, strict=True):
        if interval.low is None or interval.high is None:
            continue
        # With few seeds an interval may reach past what a share can be.
        ends = [max(0.0, 100 * interval.low), min(100.0, 100 * interval.high)]
        xs, ys = (ends, [y, y]) if horizontal else ([x, x], ends)
        axis.plot(xs, ys, color=colour, linewidth=1, alpha=0.7, zorder=1)


def _annotate(axis: Axes, point: Point, text: str, *, above: bool = False) -> None:
    macs, top1 = point
    axis.annotate(
        text,
        (macs, 100 * top1.mean),
        xytext=(-4, 6) if above else (4, -10),
        ha="right" if above else "left",
        textcoords="offset points",
        fontsize=7.5,
        color=INK,
    )


def _label(axis: Axes) -> None:
    axis.set_xlabel("multiply-adds, millions")
    axis.set_ylabel("top-1, %")
    axis.grid(color=GREY, alpha=0.25)
    axis.margins(x=0.12, y=0.12)


def _finish(axis: Axes) -> None:
    _label(axis)
    axis.legend(loc="lower right")
