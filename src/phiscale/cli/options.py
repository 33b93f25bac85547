"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from phiscale.cli.units import parse_bytes, parse_count
from phiscale.errors import RecipeError, SpecError
from phiscale.scaling.budget import Budget

__all__ = [
    "FileSize",
    "Fresh",
    "Images",
    "ImagesPerSecond",
    "InferenceMemory",
    "JsonOutput",
    "LatencyMs",
    "Macs",
    "Network",
    "Params",
    "Precision",
    "Resize",
    "Rule",
    "Runtime",
    "Settings",
    "SplitFile",
    "Threads",
    "TrainingMemory",
    "make_budget",
    "make_overrides",
]

Network = Annotated[
    str, typer.Argument(help="A name from `phiscale models`, or a JSON file with a spec.", metavar="NETWORK")
]
Images = Annotated[
    str,
    typer.Argument(
        help="Folder with one folder per class, a CSV or Parquet manifest, or torchvision:NAME:ROOT."
    ),
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Rule = Annotated[
    str,
    typer.Option(
        help="paper, uniform, dWr, depth, width, resolution, ALPHA,BETA,GAMMA or a JSON file.",
    ),
]
Macs = Annotated[
    float | None,
    typer.Option(parser=parse_count, metavar="N", help="At most N multiply-adds per image, like 390M."),
]
Params = Annotated[
    float | None, typer.Option(parser=parse_count, metavar="N", help="At most N parameters, like 5.3M.")
]
InferenceMemory = Annotated[
    float | None,
    typer.Option(parser=parse_bytes, metavar="BYTES", help="At most this memory for one forward pass."),
]
TrainingMemory = Annotated[
    float | None,
    typer.Option(parser=parse_bytes, metavar="BYTES", help="At most this memory for one training step."),
]
FileSize = Annotated[
    float | None,
    typer.Option(
        parser=parse_bytes, metavar="BYTES", help="At most this size of the weight file, like 20MB."
    ),
]
LatencyMs = Annotated[
    float | None,
    typer.Option(metavar="MS", help="At most MS milliseconds a run, measured on this machine.", min=0.0),
]
ImagesPerSecond = Annotated[
    float | None,
    typer.Option(metavar="N", help="At least N images per second, measured on this machine.", min=0.0),
]
Runtime = Annotated[
    str | None, typer.Option(help="Time with openvino, onnx or torch; the first that is installed.")
]
Precision = Annotated[str, typer.Option(help="Time in fp32, bf16 or int8; the last two with openvino.")]
Threads = Annotated[
    int | None, typer.Option(help="Time with so many threads; one for each core by default.", min=1)
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Measure again what was measured on this machine before.")
]


def _known_resize(value: str) -> str:
    if value not in ("crop", "squash", "pad"):
        raise SpecError(f"resize must be crop, squash or pad; got {value!r}")
    return value


Resize = Annotated[
    str,
    typer.Option(
        callback=_known_resize, help="crop (the centre), squash (the whole image) or pad (the whole image)."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Change a setting of the recipe, like --set augment.policy=none."
    ),
]
SplitFile = Annotated[
    Path | None, typer.Option(help="CSV with path and split (train, val, test) that decides the splits.")
]


def make_overrides(settings: list[str] | None, short: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that the options change: those of --set, over those with options of their own.

    Args:
        settings: Of --set, as NAME=VALUE.
        short: Name → value; None where the option was not given.

    Raises:
        RecipeError: One is not of the form NAME=VALUE.
    """
    overrides = {name: value for name, value in short.items() if value is not None}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set takes NAME=VALUE, got {setting!r}; like --set label_smoothing=0")
        overrides[name.strip()] = value.strip()
    return overrides


def make_budget(
    macs: float | None,
    params: float | None,
    inference_memory: float | None,
    training_memory: float | None,
    file_size: float | None,
    latency_ms: float | None = None,
) -> Budget | None:
    """The budget that the options ask for, or None where they ask for none."""
    limits = {
        "macs": macs,
        "params": params,
        "inference_bytes": inference_memory,
        "training_bytes": training_memory,
        "file_bytes": file_size,
        "latency_ms": latency_ms,
    }
    if all(value is None for value in limits.values()):
        return None
    return Budget(**limits)
