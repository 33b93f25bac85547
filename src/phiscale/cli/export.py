"""``phiscale export``: a model directory for another engine."""

from __future__ import annotations

import json as json_module
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from phiscale.cli.options import JsonOutput
from phiscale.cli.output import console, print_json

__all__ = ["export"]


class ExportFormat(StrEnum):
    """Engines that a model can be exported for."""

    ONNX = "onnx"
    OPENVINO = "openvino"


class ExportPrecision(StrEnum):
    """What an export computes in."""

    FP32 = "fp32"
    BF16 = "bf16"


def export(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A model directory.")],
    format: Annotated[ExportFormat, typer.Argument(metavar="FORMAT", help="onnx or openvino.")],  # noqa: A002
    precision: Annotated[
        ExportPrecision, typer.Option(help="fp32, or bf16 for openvino.")
    ] = ExportPrecision.FP32,
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
    from phiscale.deploy.export_store import RECORD

    folder = run(model_dir, format.value, precision=precision.value, images=images, dynamic_size=dynamic_size)
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
    out.print(f"speed    {latency[format.value]:.1f} ms an image; PyTorch took {latency['torch']:.1f} ms")
