"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

__all__ = ["INTERRUPTED", "console", "print_json", "print_table"]

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def console(*, stderr: bool = False) -> Console:
    """A console that does not cut a table where the output is a file or a pipe, and prints text as it is."""
    stream = sys.stderr if stderr else sys.stdout
    # Names and paths are the user's: a "[/x]" or ":x:" in them is no markup.
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else 160
    )


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None, left: int = 1
) -> None:
    """Print a table; the first `left` columns are text, the others numbers.

    Where it is wider than the terminal, it is continued below with its first column repeated.
    """
    out, cells = console(), [[str(cell) for cell in row] for row in rows]

    def table(columns: Sequence[int], title: str | None) -> Table:
        made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index in columns:
            made.add_column(headers[index], justify="left" if index < left else "right", overflow="fold")
        for row in cells:
            made.add_row(*(row[index] for index in columns))
        return made

    columns = [0]
    for index in range(1, len(headers)):
        wider = table([*columns, index], None)
        if (
            len(columns) > 1
            and Measurement.get(out, out.options.update(max_width=10_000), wider).maximum > out.width
        ):
            out.print(table(columns, title))
            columns, title = [0], None
        columns.append(index)
    out.print(table(columns, title))
