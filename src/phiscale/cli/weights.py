"""``phiscale weights``: what a file of weights is, in whose layout it can be had, and which are published."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phiscale.cli.options import JsonOutput
from phiscale.cli.output import console, print_json, print_table
from phiscale.cli.units import format_bytes
from phiscale.errors import ModelDirError

if TYPE_CHECKING:
    from phiscale.weights.catalog import Record

__all__ = ["weights"]

weights = typer.Typer(
    name="weights",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Inspect and convert anybody's weights, and list the published ones.",
)


class EntryName(StrEnum):
    """Which weights of a training checkpoint."""

    EMA = "ema"
    PLAIN = "plain"


class Layout(StrEnum):
    """Whose names of tensors, as `phiscale.weights.formats` has them."""

    PHISCALE = "phiscale"
    TIMM = "timm"
    TORCHVISION = "torchvision"
    LUKEMELAS = "lukemelas"
    KERAS = "keras"
    HUGGINGFACE = "huggingface"
    ARTICLE = "article"


Source = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A file, a folder, a name from `phiscale weights list`, or hf://user/repository.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="The network in it: a name from `phiscale models`, or a JSON file with a spec."),
]
EntryOption = Annotated[
    EntryName | None,
    typer.Option(help="Averaged or plain weights of a training checkpoint; averaged where it has some."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Download nothing.")]


@weights.command()
def inspect(
    file: Source,
    model: Model = None,
    entry: EntryOption = None,
    parity: Annotated[
        bool,
        typer.Option(
            "--parity/--no-parity",
            help="Compare with the publisher's own network, where its library is installed.",
        ),
    ] = True,
    offline: Offline = False,
    json: JsonOutput = False,
) -> None:
    """Say what a file of weights is, what it needs, and what is wrong with it. Nothing in it is run."""
    from phiscale.weights.doctor import inspect_weights

    report = inspect_weights(
        file,
        model=model,
        entry=entry.value if entry else None,
        parity="auto" if parity else False,
        offline=offline,
    )
    if json:
        print_json(report.to_dict())
    else:
        console().print(str(report), soft_wrap=True)


@weights.command()
def convert(
    file: Source,
    to: Annotated[Layout, typer.Option(help="Whose layout to write.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write; by default FILE with the layout in its name."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    model: Model = None,
    entry: EntryOption = None,
    json: JsonOutput = False,
) -> None:
    """Write weights of any publisher in the layout of another; no value changes."""
    from phiscale.families import get_spec
    from phiscale.weights.convert import convert_weights

    report = convert_weights(
        file,
        to.value,
        output or default_output(file, to),
        spec=get_spec(model) if model else None,
        entry=entry.value if entry else None,
        overwrite=overwrite,
    )
    if json:
        values = {**dataclasses.asdict(report), "output": str(report.output), "spec": report.spec.to_dict()}
        print_json({**values, "network": report.spec.name})
        return
    dropped = f", {len(report.dropped)} left out" if report.dropped else ""
    out = console()
    out.print(f"{report.output}: {report.spec.name}, {report.tensors} tensors{dropped}", soft_wrap=True)
    for note in report.notes:
        out.print(f"note: {note}", soft_wrap=True)


@weights.command("list")
def list_(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A name from `phiscale models`; all if left out.")
    ] = None,
    json: JsonOutput = False,
) -> None:
    """List published weights, with what is reported of them."""
    from phiscale.families import get_spec
    from phiscale.weights.catalog import best, records

    name = get_spec(model).name if model else None
    found = records(name)
    if not found:
        raise ModelDirError(f"no published weights of {name} are known; `phiscale weights list` has all")
    chosen = set()
    for each in dict.fromkeys(record.model for record in found):
        try:
            chosen.add(best(each).name)
        except ModelDirError:
            continue  # none of this network can be had for any use
    if json:
        print_json([{**_fields(record), "best": record.name in chosen} for record in found])
        return
    rows = [_row(record, best=record.name in chosen) for record in found]
    print_table(("weights", "px", "top-1 %", "size", "licence", "best"), rows)
    console().print("best: what weights='imagenet' takes for its network; top-1 as reported", soft_wrap=True)


def default_output(file: str, to: Layout) -> Path:
    """Where a conversion goes that was given no output: beside a file, or here for what is no file.

    Examples:
        >>> default_output("runs/best.pth.tar", Layout.TIMM).name
        'best.pth.timm.safetensors'
    """
    path = Path(file)
    if path.suffix in (".safetensors", ".pt", ".pth"):
        stem, suffix = path.with_suffix(""), path.suffix
    else:
        local = path.exists() and not path.is_dir()
        stem = path.with_suffix("") if local or path.suffix == ".tar" else Path(path.name)
        suffix = ".safetensors"
    if stem.name.endswith(".weights"):
        stem = stem.with_suffix("")
    return stem.with_name(f"{stem.name}.{to.value}{'.weights.h5' if to is Layout.KERAS else suffix}")


def _row(record: Record, *, best: bool) -> tuple[str, ...]:
    height, width = record.image_size
    return (
        record.name,
        str(height) if height == width else f"{height}×{width}",
        f"{record.top1:.1f}" if record.top1 is not None else "",
        format_bytes(record.size_bytes) if record.size_bytes else "",
        record.license or "not stated",
        "best" if best else "",
    )


def _fields(record: Record) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {**values, "preprocess": record.preprocess.to_dict(), "sources": dict(record.sources)}
