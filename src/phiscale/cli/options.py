"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from phiscale.cli.units import parse_bytes, parse_count
from phiscale.errors import RecipeError, SpecError
from phiscale.scaling.budget import Budget

__all__ = [
    "Baseline",
    "BatchSize",
    "CpusPerTrial",
    "DryRun",
    "Epochs",
    "FileSize",
    "Fresh",
    "GpusPerTrial",
    "GridStep",
    "ImageSize",
    "Images",
    "ImagesPerSecond",
    "InferenceMemory",
    "JsonOutput",
    "LatencyMs",
    "Macs",
    "MinEpochs",
    "Network",
    "Params",
    "Precision",
    "Ray",
    "RecipeName",
    "Resize",
    "Rule",
    "RunFolder",
    "Runtime",
    "Seed",
    "Settings",
    "SplitFile",
    "Storage",
    "StudyName",
    "Threads",
    "TrainImages",
    "TrainingMemory",
    "ValFraction",
    "Workers",
    "make_budget",
    "make_overrides",
]

Network = Annotated[
    str, typer.Argument(help="A name from `phiscale models`, or a JSON file with a spec.", metavar="NETWORK")
]
Images = Annotated[
    str,
    typer.Argument(
        help="Folder with one folder per class, a CSV or Parquet manifest, shards, or torchvision:NAME:ROOT."
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

# What the commands that search have in common.
Baseline = Annotated[
    str,
    typer.Option(
        help="A name from `phiscale models`, fitted to the images' size; or a JSON file, taken as it is."
    ),
]
RunFolder = Annotated[
    Path, typer.Option(help="Folder for trainings and results; it is gone on with.", file_okay=False)
]
GridStep = Annotated[str, typer.Option(metavar="NUMBER", help="Step of the grid of α, β and γ.")]
MinEpochs = Annotated[int, typer.Option(help="Epochs of the shortest rung.", min=1)]
ImageSize = Annotated[int | None, typer.Option(help="Image side of the baseline.", min=8)]
RecipeName = Annotated[str, typer.Option(help="fast, paper or a YAML file.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of a full training.")]
BatchSize = Annotated[int | None, typer.Option(help="Images per step.")]
Seed = Annotated[int, typer.Option(help="First seed; the split of the images is by it too.", min=0)]
TrainImages = Annotated[
    int | None,
    typer.Option(help="Train on at most so many images, drawn evenly from the classes.", min=2),
]
ValFraction = Annotated[
    float, typer.Option(help="Share held out to compare on, where there is no val split.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that train, each with one thread; by default one per core, or 1 on a GPU.", min=1
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Train on a Ray cluster: auto for the one this machine is in, HOST:PORT, or local to start one.",
    ),
]
CpusPerTrial = Annotated[int, typer.Option(help="With --ray: cores for each training.", min=1)]
GpusPerTrial = Annotated[
    float, typer.Option(help="With --ray: GPUs for each training; 0.5 lets two share one.", min=0.0)
]
Storage = Annotated[
    str | None, typer.Option(help="Keep the trainings in this database, like postgresql://USER@HOST/NAME.")
]
StudyName = Annotated[str, typer.Option("--study", help="Name of the search in --storage.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only show what would be trained, and how long it takes.")
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
