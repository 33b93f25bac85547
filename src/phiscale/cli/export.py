"""``phiscale export``: a model directory for another engine."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from phiscale.cli.options import JsonOutput
from phiscale.cli.output import console, print_json
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
        Path | None,
        typer.Option(help="Folder of images to check with; by default those that the model was trained on."),
    ] = None,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="Let height and width vary.")] = False,
    json: JsonOutput = False,
) -> None:
    """Export a model, from images to probabilities, and check on real images that it answers alike.

    `phiscale predict` and `phiscale.load` then take the fastest export that is installed.
    """
    from phiscale.deploy.export import export as run

    folder = run(
        model_dir,
        cast("Format", format),  # both are checked there
        precision=cast("Precision", precision),
        images=images,
        dynamic_size=dynamic_size,
    )
    record = json_module.loads((folder / RECORD).read_text(encoding="utf-8"))
    if json:
        print_json({"path": str(folder), **record})
        return
    check, latency, out = record["check"], record["latency_ms"], console()
    out.print(f"export   {folder / record['file']}")
    out.print(
        f"checked  {check['agreement']:.1%} the same class on {check['images']} images of {check['source']}; "
        f"probabilities at most {check['max_difference']:.1e} apart"
    )
    out.print(f"speed    {latency['export']:.1f} ms an image; PyTorch took {latency['eager']:.1f} ms")
