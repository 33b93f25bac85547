"""Pictures of a run: training curves, confusion matrix, predictions. PNG, SVG or PDF, by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from phiscale.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["new_figure", "plot_confusion", "plot_history", "plot_predictions", "save_png_and_svg"]

BLUE, RED, GREY = "#4477aa", "#cc3344", "#777777"


def new_figure(width: float, height: float, *, dpi: int = 130) -> Figure:
    """An empty figure that touches nothing global and needs no display.

    Args:
        width: Inches.
        height: Inches.
        dpi: Pixels per inch.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png_and_svg(stem: Path, draw: Callable[[Figure], None], *, width: float, height: float) -> None:
    """Draw a figure into ``STEM.png`` and ``STEM.svg``.

    Args:
        stem: The files' path without its ending.
        draw: Fills an empty figure.
        width: Inches.
        height: Inches.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OSError: A file cannot be written.
    """
    for ending in ("png", "svg"):
        figure = new_figure(width, height)
        draw(figure)
        figure.savefig(stem.with_name(f"{stem.name}.{ending}"))


def plot_history(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss and top-1 over the epochs.

    Args:
        history: The records of ``history.json``.
        path: Picture to write.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure = new_figure(9, 3.2)
    axes = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    for axis, what, scale in ((axes[0], "loss", 1), (axes[1], "top1", 100)):
        for part, colour in (("train", GREY), ("val", BLUE)):
            values = [
                record[f"{part}_{what}"] for record in history if record.get(f"{part}_{what}") is not None
            ]
            if len(values) == len(epochs):
                axis.plot(epochs, [value * scale for value in values], color=colour, label=part)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    axes[0].set_title("loss", loc="left")
    axes[1].set_title("top-1, %", loc="left")
    axes[1].legend(frameon=False)
    figure.savefig(path)


def plot_confusion(matrix: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, each row as shares of its class.

    Args:
        matrix: (K, K) counts, rows are the right classes.
        classes: Names of the classes.
        path: Picture to write.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    size = max(4.0, 0.55 * len(classes) + 2)
    figure = new_figure(size, size)
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:
        for row, column in np.ndindex(*matrix.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(
                column, row, f"{matrix[row, column]}", ha="center", va="center", color=colour, fontsize=9
            )
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set_xlabel("predicted")
    axis.set_ylabel("right class")
    figure.savefig(path)


def plot_predictions(
    images: Sequence[Image.Image],
    labels: Sequence[str],
    scores: Sequence[float],
    truths: Sequence[str],
    path: Path,
    *,
    columns: int = 6,
) -> None:
    """Draw images with what the model says; what is wrong is red, with the right class below.

    Args:
        images: The images, in any mode.
        labels: Most likely class of each.
        scores: Its probability.
        truths: The right classes.
        path: Picture to write.
        columns: Images in a row.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    rows = -(-len(images) // columns)
    figure = new_figure(1.6 * columns, 1.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, label, score, truth in zip(axes, images, labels, scores, truths, strict=False):
        axis.imshow(image.convert("RGBA"))
        right = label == truth
        text = f"{label} {score:.0%}" if right else f"{label} {score:.0%}\n(is {truth})"
        axis.set_title(text, fontsize=9, color="black" if right else RED)
    figure.savefig(path)
