"""Tables that list images: CSV and Parquet manifests, and split files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from phiscale.data.decode import printable
from phiscale.data.listing import SPLIT_NAMES, Entry, FileReader, Listing, Split
from phiscale.errors import DataError, require

__all__ = ["MANIFEST_SUFFIXES", "list_manifest", "read_split_file"]

MANIFEST_SUFFIXES = frozenset({".csv", ".parquet"})

Table = dict[str, list[Any]]


def list_manifest(path: Path) -> Listing:
    """The images that a manifest lists, in its order.

    Args:
        path: CSV or Parquet with the columns `path` (relative to the manifest's folder), `label`, and
            optionally `split` (train, val or test; empty where it is open).

    Raises:
        DataError: The manifest cannot be read, lacks a column or a value, or lists an image twice.
    """
    table = _read_table(path, required=("path", "label"))
    splits = table.get("split", [None] * len(table["path"]))
    entries: list[Entry] = []
    first: dict[str, int] = {}
    for row, (name, label, split) in enumerate(zip(table["path"], table["label"], splits, strict=True), 1):
        where = f"{printable(path)}, row {row}"
        image_id, text = _image_id(name), _text(label)
        if not image_id or not text:
            raise DataError(f"{where}: {'path' if not image_id else 'label'} is empty; fill it in")
        if image_id in first:
            raise DataError(
                f"{where}: {printable(image_id)} is listed before, in row {first[image_id]}; keep one"
            )
        first[image_id] = row
        entries.append(Entry(image_id, text, _split(split, where, optional=True)))
    if not entries:
        raise DataError(f"{printable(path)} lists no images")
    return Listing(entries=tuple(entries), reader=FileReader(path.parent))


def read_split_file(path: Path) -> dict[str, Split]:
    """The split of each image by its id, from a CSV with the columns `path` and `split`.

    Raises:
        DataError: The file cannot be read, lacks a column, or has a value that is no split.
    """
    if not path.is_file():
        raise DataError(f"the split file {printable(path)} does not exist")
    table = _read_table(path, required=("path", "split"))
    result: dict[str, Split] = {}
    for row, (name, value) in enumerate(zip(table["path"], table["split"], strict=True), 1):
        where = f"{printable(path)}, row {row}"
        split = _split(value, where, optional=False)
        assert split is not None
        if result.setdefault(_image_id(name), split) != split:
            raise DataError(f"{where}: {printable(name)} is in two splits; keep one")
    return result


def _read_table(path: Path, *, required: tuple[str, ...]) -> Table:
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    for column in required:
        if column not in table:
            found = ", ".join(printable(name) for name in table) or "none"
            raise DataError(f"{printable(path)} has no column {column!r}; its columns: {found}")
    return table


def _read_csv(path: Path) -> Table:
    try:
        # Spreadsheets put a byte order mark in front; utf-8-sig takes it away.
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            names, rows = reader.fieldnames or (), list(reader)
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {printable(path)}: {printable(error)}") from None
    return {name: [row[name] for row in rows] for name in names}


def _read_parquet(path: Path) -> Table:
    parquet = require("pyarrow.parquet", extra="data")
    try:
        table = parquet.read_table(path)
        wanted = {"path", "label", "split"}  # the others may be large, such as the images' bytes
        return {name: table.column(name).to_pylist() if name in wanted else [] for name in table.column_names}
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise DataError(f"cannot read {printable(path)}: {printable(error)}") from None


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _image_id(value: object) -> str:
    return _text(value).replace("\\", "/")  # manifests written on Windows


def _split(value: object, where: str, *, optional: bool) -> Split | None:
    text = _text(value).lower()
    if not text and optional:
        return None
    if text not in SPLIT_NAMES:
        raise DataError(f"{where}: split must be train, val or test, got {printable(value)!r}")
    return SPLIT_NAMES[text]
