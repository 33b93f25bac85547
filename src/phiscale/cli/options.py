"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from phiscale.cli.units import parse_bytes, parse_count
from phiscale.scaling.budget import Budget

__all__ = [
    "FileSize",
    "InferenceMemory",
    "JsonOutput",
    "Macs",
    "Network",
    "Params",
    "Rule",
    "TrainingMemory",
    "make_budget",
]

Network = Annotated[
    str, typer.Argument(help="A name from `phiscale models`, or a JSON file with a spec.", metavar="NETWORK")
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


def make_budget(
    macs: float | None,
    params: float | None,
    inference_memory: float | None,
    training_memory: float | None,
    file_size: float | None,
) -> Budget | None:
    """The budget that the options ask for, or None where they ask for none."""
    limits = {
        "macs": macs,
        "params": params,
        "inference_bytes": inference_memory,
        "training_bytes": training_memory,
        "file_bytes": file_size,
    }
    if all(value is None for value in limits.values()):
        return None
    return Budget(**limits)
