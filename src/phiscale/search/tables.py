"""Tables of a search as text, and its files, each whole or absent."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phiscale.errors import TrainingError
from phiscale.weights.files import write_text

__all__ = ["to_csv", "write_texts"]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Rows with the same columns, at least one, as CSV with a header.

    Examples:
        >>> to_csv([{"network": "b0", "top1": 0.9}])
        'network,top1\nb0,0.9\n'
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def write_texts(contents: Mapping[str, str], folder: Path) -> None:
    """Write files in the order of `contents`.

    Args:
        contents: Path below `folder`, at most one folder deep, → content.
        folder: Where to; it must exist.

    Raises:
        TrainingError: A file cannot be written.
    """
    for name, text in contents.items():
        path = folder / name
        try:
            if path.parent != folder:
                path.parent.mkdir(exist_ok=True)
            write_text(path, text)
        except OSError as error:
            raise TrainingError(f"cannot write {path}: {error.strerror or error}") from None
