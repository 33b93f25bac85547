"""The benchmark as a picture: time against multiply-adds, activations and reported accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phiscale.cli.units import format_count
from phiscale.evaluation.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.transforms import Bbox

    from phiscale.deploy.benchmark import Row

__all__ = ["plot_benchmark"]

COLOURS = {
    "efficientnet_lite": "#228833",
    "efficientnet": "#4477aa",
    "resnet": "#ee6677",
    "mobilenet": "#aa3377",
}
OTHER, GREY = "#777777", "#999999"
# Where a label may stand, in points from its dot; the first place that is free is taken.
PLACES = [
    (dx, dy)
    for reach in (5, 12, 20, 30, 42)
    for dx, dy in (
        (reach, -3),
        (-reach, -3),
        (0, reach),
        (0, -reach - 6),
        (reach, reach),
        (-reach, -reach - 6),
    )
]


def plot_benchmark(rows: Sequence[Row], where: str, path: Path) -> None:
    """Draw a benchmark.

    Args:
        rows: From `phiscale.deploy.benchmark.benchmark`.
        where: Engine and machine, for the title.
        path: PNG, SVG or PDF file to write.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    figure = new_figure(15, 5.2)
    by_macs, by_activations, by_accuracy = figure.subplots(1, 3)
    known = [(row, row.accuracy.top1) for row in rows if row.accuracy is not None]
    points: dict[Axes, list[tuple[float, float]]] = {
        by_macs: [(row.complexity.macs, row.latency.median_ms) for row in rows],
        by_activations: [(row.complexity.activations, row.latency.median_ms) for row in rows],
        by_accuracy: [(row.latency.median_ms, top1) for row, top1 in known],
    }
    names = {axis: [row.spec.name for row in rows] for axis in (by_macs, by_activations)}
    names[by_accuracy] = [row.spec.name for row, _ in known]
    for axis, label in ((by_macs, "multiply-adds an image"), (by_activations, "activations an image")):
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="milliseconds")
        _plain_ticks(axis.yaxis)
    by_accuracy.set(xscale="log", xlabel="milliseconds", ylabel="reported top-1, %")
    front = sorted((row.latency.median_ms, top1) for row, top1 in known if row.on_front)
    by_accuracy.plot(*zip(*front, strict=True) if front else ([], []), color=GREY, linewidth=1, zorder=1)
    for axis, dots in points.items():
        _scatter(axis, names[axis], dots)
    figure.suptitle(where, fontsize=9, color="#555555")
    figure.draw_without_rendering()  # settles the axes that labels are placed in
    for axis, dots in points.items():
        _label(axis, [name.removeprefix("efficientnet_") for name in names[axis]], dots)
    figure.savefig(path)


def _scatter(axis: Axes, names: Sequence[str], dots: Sequence[tuple[float, float]]) -> None:
    x, y = zip(*dots, strict=True) if dots else ((), ())
    axis.scatter(x, y, c=[_colour(name) for name in names], s=28, zorder=3)
    axis.margins(0.2)
    axis.grid(alpha=0.25)
    _plain_ticks(axis.xaxis)


def _colour(name: str) -> str:
    return next((colour for family, colour in COLOURS.items() if name.startswith(family)), OTHER)


def _plain_ticks(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))


def _label(axis: Axes, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Write names beside dots, each where it covers neither a dot nor another name."""
    pixels = axis.figure.dpi / 72
    places = [axis.transData.transform(point) for point in points]
    taken = [_square(x, y, 4 * pixels) for x, y in places]
    for name, point in zip(names, points, strict=True):
        for dx, dy in PLACES:
            text = axis.annotate(
                name,
                point,
                xytext=(dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right" if dx < 0 else "center",
                fontsize=8,
            )
            box = text.get_window_extent()
            inside = axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _square(x: float, y: float, half: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x - half, y - half, x + half, y + half)
