"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["console", "print_json", "print_table"]


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
    """Print a table; the first `left` columns are text, the others numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console().print(table)
