"""Networks drawn to scale: a side view in which depth, width and resolution can be seen."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from phiscale.cli.units import format_count
from phiscale.errors import SpecError
from phiscale.evaluation.plots import new_figure
from phiscale.scaling.complexity import complexity
from phiscale.spec import NetworkSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_picture", "plot_networks", "writing"]

COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#cc8844", "#777777")
GAP = 4.0


def plot_networks(networks: Mapping[str, NetworkSpec], path: Path) -> None:
    """Draw networks one above the other, all to one scale, as in Figure 2 of the paper.

    Each block is a bar: its height grows with the side of its feature map (resolution), its thickness
    with its channels (width), and more blocks (depth) make a longer row. Both grow with the square
    root, so that small maps can be seen beside large ones.

    Args:
        networks: Label and spec, from top to bottom.
        path: PNG, SVG or PDF file to write.

    Raises:
        SpecError: The ending of `path` names no picture format.
        MissingDependencyError: matplotlib is not installed.
    """
    check_picture(path)
    figure = new_figure(10, 1.05 * len(networks) + 0.5, dpi=150)
    axes = figure.subplots(len(networks), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, (label, spec) in zip(axes, networks.items(), strict=True):
        _draw(axis, label, spec)
    figure.supxlabel(
        "a bar is a block; taller: larger map (resolution); thicker: more channels (width); "
        "more bars: more layers (depth)",
        fontsize=8,
        color="#555555",
    )
    figure.savefig(path)


def check_picture(path: Path) -> None:
    """Make sure that a picture can be written to a path.

    Raises:
        SpecError: Its ending names no picture format, or its folder does not exist.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise SpecError(f"{path} must end in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise SpecError(f"cannot write {path}: {os.strerror(errno.ENOENT)}; give another path")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line that a file cannot be written.

    Raises:
        SpecError: It cannot.
    """
    try:
        yield
    except OSError as error:
        raise SpecError(f"cannot write {path}: {error.strerror}; give another path") from None


def _draw(axis: Axes, label: str, spec: NetworkSpec) -> None:
    cost = complexity(spec)
    side = -(-spec.image_size[0] // cost.stages[0].stride)
    bars = [(spec.image_size[0], 1, "#bbbbbb"), (side, spec.stem.out_channels, COLOURS[0])]
    for block in spec.blocks():
        side = -(-side // block.stride)
        bars.append((side, block.out_channels, COLOURS[(block.stage_index + 1) % len(COLOURS)]))
    x = 0.0
    for pixels, channels, colour in bars:
        height, thickness = math.sqrt(pixels), 0.7 * math.sqrt(channels)
        axis.bar(x, height, width=thickness, bottom=-height / 2, align="edge", color=colour, linewidth=0)
        x += thickness + GAP
    text = (
        f"{label}\n{format_count(cost.macs)} multiply-adds\n{format_count(cost.params)} parameters\n"
        f"{spec.num_blocks} blocks, {spec.image_size[0]} px"
    )
    axis.text(-0.01, 0.5, text, transform=axis.transAxes, ha="right", va="center", fontsize=8)
    axis.set_axis_off()
