"""`phiscale benchmark`: networks timed on this machine, beside their cost and their reported accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phiscale.cli.options import Fresh, JsonOutput, Precision, Runtime, Threads
from phiscale.cli.output import console, print_json, print_table
from phiscale.cli.progress import counting
from phiscale.cli.timing import make_meter
from phiscale.cli.units import format_count
from phiscale.errors import SpecError
from phiscale.families import get_spec, list_specs

if TYPE_CHECKING:
    from phiscale.deploy.benchmark import Row


def benchmark(
    networks: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names from `phiscale models` or JSON files; by default B0–B3, Lite0–2, ResNet-18 and 50, "
            "and MobileNetV2."
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All networks that are known by name; the largest take minutes.")
    ] = False,
    runtime: Runtime = None,
    precision: Precision = "fp32",
    threads: Threads = None,
    batch_size: Annotated[int, typer.Option(help="Images in a run.", min=1)] = 1,
    fresh: Fresh = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw time against multiply-adds, activations and accuracy to this PNG or SVG file.",
            dir_okay=False,
        ),
    ] = None,
    json: JsonOutput = False,
) -> None:
    """Time networks at their own image sizes on this machine, in turn, with random weights.

    A star marks those that no other network beats in both time and reported accuracy.
    """
    from phiscale.deploy.benchmark import BENCHMARKED
    from phiscale.deploy.benchmark import benchmark as run

    if networks and every:
        raise SpecError("name networks or give --all, not both")
    names = networks or (list_specs() if every else BENCHMARKED)
    specs = [get_spec(name) for name in dict.fromkeys(names)]
    if plot is not None:
        from phiscale.cli.plots import check_picture

        check_picture(plot)  # before minutes of measuring
    if not json:
        console(stderr=True).print(f"measuring {len(specs)} networks in turn")
    with counting("measuring", show=not json) as progress:
        meter = make_meter(
            runtime, precision, threads, batch_size, fresh=fresh, show=False, progress=progress
        )
        rows = run(specs, meter)
    if plot is not None:
        from phiscale.cli.benchmark_plot import plot_benchmark
        from phiscale.cli.plots import writing

        with writing(plot):
            plot_benchmark(rows, meter.where, plot)
    if json:
        print_json({"where": meter.where, "networks": [row.to_dict() for row in rows]})
        return
    _print(rows, meter.where)
    if plot is not None:
        console().print(f"wrote {plot}", soft_wrap=True)


def _print(rows: list[Row], where: str) -> None:
    out = console()
    out.print(f"timed with {where}", soft_wrap=True)
    headers = (
        "network",
        "",
        "image",
        "parameters",
        "multiply-adds",
        "activations",
        "ms",
        "p90",
        "images/s",
        "top-1",
    )
    print_table(headers, [_cells(row) for row in rows])
    if any(row.accuracy for row in rows):
        out.print(
            "top-1 is the highest that is published at this image size for training on ImageNet-1k alone:"
        )
    for row in rows:
        if row.accuracy is not None:
            out.print(f"  {row.spec.name:18} {row.accuracy.weights}  ({row.accuracy.source})", soft_wrap=True)
    for sentence in _sentences(rows):
        out.print(sentence, soft_wrap=True)
    if not all(row.latency.is_steady for row in rows):
        out.print(
            "the machine was busy meanwhile: nine of ten runs reach far above the median; run it again alone"
        )


def _cells(row: Row) -> tuple[str, ...]:
    height, width = row.spec.image_size
    return (
        row.spec.name,
        "★" if row.on_front else "",
        f"{height}×{width}",
        format_count(row.complexity.params),
        format_count(row.complexity.macs),
        format_count(row.complexity.activations),
        f"{row.latency.median_ms:.3g}",
        f"{row.latency.p90_ms:.3g}",
        f"{row.latency.images_per_second:.3g}",
        "–" if row.accuracy is None else f"{row.accuracy.top1:.1f}",
    )


def _sentences(rows: list[Row]) -> list[str]:
    """What a buyer wants to know, in words."""
    from phiscale.deploy.benchmark import better_buys, more_for_less

    found = []
    for row, other in better_buys(rows):
        assert row.accuracy is not None
        assert other.accuracy is not None
        found.append(
            f"{other.spec.name} is the better buy than {row.spec.name} on this machine: "
            f"{other.latency.median_ms:.3g} ms instead of {row.latency.median_ms:.3g} ms, "
            f"top-1 {other.accuracy.top1:.1f} instead of {row.accuracy.top1:.1f}"
        )
    for row, other in more_for_less(rows):
        times = other.complexity.macs / row.complexity.macs
        lost = ""
        if row.accuracy is not None and other.accuracy is not None:
            lost = f"; top-1 {other.accuracy.top1:.1f} against {row.accuracy.top1:.1f}"
        found.append(
            f"{other.spec.name} is faster than {row.spec.name} at {times:.2g} times its multiply-adds: "
            f"{other.latency.median_ms:.3g} ms against {row.latency.median_ms:.3g} ms{lost}"
        )
    return found
