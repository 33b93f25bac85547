"""``phiscale scan``: what is wrong with a set of images, before training starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phiscale.cli.options import JsonOutput
from phiscale.cli.output import console, print_json
from phiscale.cli.progress import counting

if TYPE_CHECKING:
    from rich.text import Text

    from phiscale.data.scan import Finding, ScanReport

__all__ = ["scan"]

_EXAMPLES = 5
_LISTED_CLASSES = 12


def scan(
    images: Annotated[
        str,
        typer.Argument(
            help="Folder of class folders, .csv or .parquet manifest, shards, or torchvision:NAME:ROOT."
        ),
    ],
    val_fraction: Annotated[
        float, typer.Option(help="Share of train that becomes val where there is none; 0 for none.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Decides which images become val.")] = 0,
    split_file: Annotated[
        Path | None, typer.Option(help="CSV with the columns path and split that decides instead.")
    ] = None,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates/--no-near-duplicates", help="Look for near duplicates, too.")
    ] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default: one per core.")] = None,
    json_output: JsonOutput = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 2 if an image cannot be used.")] = False,
) -> None:
    """Read every image once and report what is broken, doubled or unusual."""
    from phiscale.data.scan import scan as scan_images
    from phiscale.data.sources import open_source
    from phiscale.errors import DataError

    source = open_source(images, val_fraction=val_fraction, seed=seed, split_file=split_file)
    with counting("Reading images", show=not json_output) as progress:
        report = scan_images(source, near_duplicates=near_duplicates, workers=workers, progress=progress)
    if json_output:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if strict and report.unusable:
        raise DataError(
            f"{len(report.unusable)} of {report.images} images cannot be used; repair or remove them, "
            "or leave out --strict"
        )


def _print_report(report: ScanReport) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    usable = report.images - len(report.unusable)
    out.print(Text(f"{usable:,} of {report.images:,} images can be used; {len(report.classes)} classes"))
    for split, classes in report.counts.items():
        out.print(Text(f"  {split:<5}  {_class_summary(classes)}"))
    if report.sizes is not None:
        s = report.sizes
        out.print(
            Text(
                f"  sizes  height {s.min_height}–{s.max_height} (median {s.median_height}), "
                f"width {s.min_width}–{s.max_width} (median {s.median_width}); "
                f"{report.decoded_bytes / 2**20:,.0f} MiB decoded"
            )
        )
    if not report.findings:
        out.print(Text("Nothing to report.", style="green"))
        return
    table = Table("", "finding", "images", "what, and examples", box=None, padding=(0, 2, 0, 0))
    for group in _by_kind(report.findings):
        table.add_row(*_row(group), style={"error": "red", "warning": "yellow"}.get(group[0].severity, ""))
    out.print(table)


def _by_kind(findings: tuple[Finding, ...]) -> list[list[Finding]]:
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind].append(finding)
    return list(groups.values())


def _row(group: list[Finding]) -> tuple[Text, Text, Text, Text]:
    """Severity, kind, number of images, and the message with up to five examples."""
    from rich.text import Text

    from phiscale.data.decode import printable

    messages = list(dict.fromkeys(finding.message for finding in group))
    number = len({id_ for finding in group for id_ in finding.ids})
    if "duplicate" in group[0].kind:  # an example is a group of images, not one
        lines = [messages[0], *("  " + " = ".join(map(printable, f.ids[:3])) for f in group[:_EXAMPLES])]
        rest = len(group) - _EXAMPLES
    elif len(messages) == 1:
        ids = [printable(id_) for finding in group for id_ in finding.ids]
        lines, rest = [messages[0], *(f"  {id_}" for id_ in ids[:_EXAMPLES])], number - _EXAMPLES
    else:
        lines = [": ".join([*map(printable, f.ids[:1]), f.message]) for f in group[:_EXAMPLES]]
        rest = len(group) - _EXAMPLES
    if rest > 0:
        lines.append(f"  … {rest:,} more")
    kind = group[0].kind.replace("_", " ")
    count = f"{number:,}" if number else ""
    return Text(group[0].severity), Text(kind), Text(count), Text("\n".join(lines))


def _class_summary(counts: Mapping[str, int]) -> str:
    from phiscale.data.decode import printable

    total = f"{sum(counts.values()):,} images: "
    if len(counts) <= _LISTED_CLASSES:
        return total + ", ".join(f"{printable(name)} {number:,}" for name, number in counts.items())
    return total + f"{min(counts.values()):,} to {max(counts.values()):,} in each of {len(counts)} classes"
