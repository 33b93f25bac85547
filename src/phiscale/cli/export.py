"""``phiscale export``: a model directory for another engine."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from phiscale.cli.options import JsonOutput
from phiscale.cli.output import INTERRUPTED, console, print_json
from phiscale.cli.units import format_bytes
from phiscale.deploy.export_store import RECORD, Format, Precision

__all__ = ["export"]


def _one_of(literal: object) -> str:
    *others, last = get_args(literal)
    return f"{', '.join(others)} or {last}"


def export(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A model directory.")],
    format: Annotated[  # noqa: A002
        str, typer.Argument(metavar="FORMAT", help=f"{_one_of(Format)}.")
    ],
    precision: Annotated[str, typer.Option(help=f"{_one_of(Precision)}.")] = "fp32",
    images: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help="Images to check, calibrate and measure with: a folder, best with a folder per class, a "
            "manifest or a torchvision data set; by default those that the model was trained on.",
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(metavar="POINTS", help="Points of top-1 accuracy that int8 or bf16 may cost.")
    ] = 0.5,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="Let height and width vary.")] = False,
    json: JsonOutput = False,
) -> None:
    """Export a model, from images to probabilities, and check on real images that it answers alike.

    In int8 or bf16, the loss of accuracy is measured, too. `phiscale predict` and `phiscale.load` then take
    the fastest export that is installed and loses no more than allowed.
    """
    from phiscale.deploy.export import export as run

    try:
        with _stages(show=not json) as progress:
            folder = run(
                model_dir,
                cast("Format", format),  # both are checked there
                precision=cast("Precision", precision),
                images=images,
                max_drop=max_drop,
                dynamic_size=dynamic_size,
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo("stopped; nothing half-made is left, and earlier exports are as they were", err=True)
        raise typer.Exit(INTERRUPTED) from None
    record = json_module.loads((folder / RECORD).read_text(encoding="utf-8"))
    if json:
        print_json({"path": str(folder), **record})
    else:
        _show(folder, record)


@contextmanager
def _stages(*, show: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback that takes (what, done, total) and draws a bar; None where nobody looks."""
    if not show or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total if total > 1 else None
        )


def _show(folder: Path, record: Mapping[str, Any]) -> None:
    check, latency, out = record["check"], record["latency_ms"], console()
    out.print(f"export   {folder / record['file']}, {format_bytes(record['size_bytes'])}")
    if check is None:
        out.print(f"checked  not: {record['unchecked']}")
        return
    out.print(
        f"checked  {check['agreement']:.1%} the same class on {check['images']} images of {check['source']}; "
        f"probabilities at most {check['max_difference']:.1e} apart"
    )
    if record["loss"] is not None:
        out.print(f"loss     {_loss(record['loss'])}")
    elif record["max_drop"] is not None:
        out.print("loss     not measured: no images of the model's own; give --images")
    if record["quantization"] is not None:
        kept = ", ".join(record["quantization"]["kept"])
        out.print(f"int8     all but {kept}" if kept else "int8     all layers")
    out.print(f"speed    {latency['export']:.1f} ms an image; PyTorch took {latency['eager']:.1f} ms")
    if not record["is_within_max_drop"]:
        out.print(
            f"warning  nothing that was tried lost at most {record['max_drop']:g} points; this is the best "
            f"of it, which is used only when it is asked for by name: --runtime {folder.name}"
        )


def _loss(loss: Mapping[str, Any]) -> str:
    images, views = loss["images"], loss["views"]
    positions = f" in {views} positions each" if views > 1 else ""
    where = f"on {images} images of {loss['source']}{positions}; one image is {100 / images:.2g} points"
    if loss["measure"] == "accuracy":
        return f"{loss['drop']:.2f} points of top-1, now {loss['top1']:.1%}, {where}"
    return (
        f"at most {loss['drop']:.2f} points of top-1, as there are no labels to measure accuracy with: so "
        f"many answers change {where}"
    )
