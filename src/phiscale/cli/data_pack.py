"""``phiscale data pack``: a set of images in few large files."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from phiscale.cli.options import Images, JsonOutput
from phiscale.cli.output import INTERRUPTED, console, print_json
from phiscale.cli.progress import counting
from phiscale.cli.units import format_bytes, parse_bytes

__all__ = ["data"]

data = typer.Typer(name="data", no_args_is_help=True, rich_markup_mode=None, help="Sets of images as files.")


class ShardFormat(StrEnum):
    """What a shard is."""

    WEBDATASET = "webdataset"
    PARQUET = "parquet"


@data.callback()
def _group() -> None:
    """Sets of images as files."""


@data.command()
def pack(
    images: Images,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="An empty folder for the shards.")],
    format: Annotated[  # noqa: A002
        ShardFormat, typer.Option(help="Tars that WebDataset reads, or Parquet as Hugging Face has it.")
    ] = ShardFormat.WEBDATASET,
    shard_size: Annotated[
        float, typer.Option(parser=parse_bytes, metavar="BYTES", help="About how large a shard is.")
    ] = "256MB",  # type: ignore[assignment]
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Shrink larger images to this shorter side in pixels; else all stay as they are."
        ),
    ] = None,
    json_output: JsonOutput = False,
) -> None:
    """Put a set of images into few large files, which every command takes in place of the folder.

    After Ctrl-C or a kill, the same command goes on after the last shard that is whole.
    """
    from phiscale.data.packing import pack as pack_images
    from phiscale.data.sources import open_source

    source = open_source(images, val_fraction=0)
    try:
        with counting("Packing images", show=not json_output) as progress:
            report = pack_images(
                source,
                out,
                format=format.value,
                shard_size=int(shard_size),
                image_size=image_size,
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo(f"stopped; the shards in {out} are kept, and the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if json_output:
        print_json({**dataclasses.asdict(report), "folder": str(report.folder)})
        return
    noun = "shard" if report.shards == 1 else "shards"
    kept = f", {report.went_on} of them from before" if report.went_on else ""
    console().print(
        f"{report.folder}: {report.images:,} images in {report.shards:,} {noun}{kept}, "
        f"{format_bytes(report.size_bytes)}",
        soft_wrap=True,
    )
