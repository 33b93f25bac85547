"""Images in Parquet files: the columns `image` (bytes, or bytes and path), `label` and maybe `split`.

That is how Hugging Face's data sets are stored, whose class names stand in the file's metadata, and how
`phiscale data pack --format parquet` writes. Parquet is read a row group at a time: a few megabytes in our
files, hundreds in some others, which are slow to read in random order.
"""

from __future__ import annotations

import json
import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from phiscale.data.decode import ImageError, printable
from phiscale.data.listing import SPLIT_NAMES, Entry, Listing, Split
from phiscale.data.packed import PackedReader
from phiscale.errors import DataError, require

__all__ = ["IMAGE_COLUMNS", "METADATA", "holds_images", "list_parquet"]

IMAGE_COLUMNS = ("image", "img")
METADATA = b"huggingface"
_LABEL_COLUMNS = ("label", "labels", "cls")
# Row groups that stay in memory: threads that read in order are in the same one or two.
_KEPT = 4
_LARGE = 32 * 2**20

_log = logging.getLogger(__name__)


class ParquetReader(PackedReader):
    """Reads images from Parquet files, a row group at a time.

    Args:
        shards: The files.
        stamps: Size and time of change of each, in one text.
        groups: Of each shard, the number of the first row of each row group, and of all rows.
        column: Where the bytes are, such as ``"image.bytes"``.
        rows: Image id → (shard, row).
    """

    def __init__(
        self,
        shards: Sequence[Path],
        stamps: Sequence[str],
        groups: Sequence[Sequence[int]],
        column: str,
        rows: Mapping[str, tuple[int, int]],
    ) -> None:
        self._shards, self._stamps, self._groups = tuple(shards), tuple(stamps), tuple(groups)
        self._column, self._rows = column, rows
        self._open()

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], list[bytes | None]] = OrderedDict()

    def file(self, image_id: str) -> bytes:
        """The bytes of an image.

        Raises:
            ImageError: There is no such image, it has no bytes, or its file cannot be read.
        """
        place = self._rows.get(image_id)
        if place is None:
            raise ImageError(f"{printable(image_id)}: no such image", reason="no such image")
        shard, row = place
        starts = self._groups[shard]
        group = bisect_right(starts, row) - 1
        data = self._read_group(shard, group)[row - starts[group]]
        if not data:
            reason = "there are no bytes"
            raise ImageError(f"{printable(image_id)}: {reason}", problem="zero_byte", reason=reason)
        return data

    def stamp(self, image_id: str) -> str:
        """Size and time of change of the file, and the row."""
        shard, row = self._rows[image_id]
        return f"{self._stamps[shard]} {row}"

    def _read_group(self, shard: int, group: int) -> list[bytes | None]:
        with self._lock:
            key = (shard, group)
            if key not in self._kept:
                parquet = require("pyarrow.parquet", extra="data")
                path = self._shards[shard]
                try:
                    with parquet.ParquetFile(path, memory_map=True) as file:
                        table = file.read_row_group(group, columns=[self._column], use_threads=False)
                except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
                    reason = "the Parquet file cannot be read"
                    raise ImageError(f"{printable(path)}: {printable(error)}", reason=reason) from None
                (values,) = (column.combine_chunks() for column in table.flatten().columns)
                self._kept[key] = values.to_pylist()
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def holds_images(path: Path) -> bool:
    """Whether a Parquet file holds images and not only their paths.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    parquet = require("pyarrow.parquet", extra="data")
    try:
        names = parquet.read_schema(path).names
    except (OSError, ValueError):
        return False
    return any(name in names for name in IMAGE_COLUMNS)


def list_parquet(
    shards: Sequence[Path], root: Path, splits: Sequence[Split | None], *, by_path: bool
) -> Listing:
    """The images of some Parquet files, in their order.

    Args:
        shards: The files.
        root: Ids of images begin with their file's path from here.
        splits: Of each file; None where it is open or a column `split` decides.
        by_path: Whether the path that an image had before it was packed is its id.

    Raises:
        DataError: A file cannot be read, lacks a column, or an image has no label.
    """
    entries: list[Entry] = []
    rows: dict[str, tuple[int, int]] = {}
    groups: list[list[int]] = []
    column = ""
    for number, (shard, split) in enumerate(zip(shards, splits, strict=True)):
        table, column, starts = _read_labels(shard)
        groups.append(starts)
        prefix = shard.with_suffix("").relative_to(root).as_posix()
        for row in range(starts[-1]):
            where = f"{printable(shard)}, row {row + 1}"
            path, label = table["path"][row], table["label"][row]
            if label is None or label == "":
                raise DataError(f"{where} has no label; fill it in")
            image_id = path if by_path and path else f"{prefix}/{row}"
            if image_id in rows:
                raise DataError(f"{where}: {printable(image_id)} is there a second time; pack it anew")
            rows[image_id] = number, row
            entries.append(Entry(image_id, label, split or _split(table["split"][row], where)))
    if not entries:
        raise DataError(f"no images in {printable(shards[0])}")
    stamps = [f"{shard.stat().st_size} {shard.stat().st_mtime_ns}" for shard in shards]
    reader = ParquetReader([shard.absolute() for shard in shards], stamps, groups, column, rows)
    return Listing(entries=tuple(entries), reader=reader)


def _read_labels(shard: Path) -> tuple[dict[str, list[Any]], str, list[int]]:
    """Label, path and split of each row, the column of the bytes, and where each row group begins."""
    parquet = require("pyarrow.parquet", extra="data")
    import pyarrow

    try:
        with parquet.ParquetFile(shard) as file:
            schema, metadata = file.schema_arrow, file.metadata
            image = _column(schema.names, IMAGE_COLUMNS, shard)
            label = _column(schema.names, _LABEL_COLUMNS, shard)
            is_struct = pyarrow.types.is_struct(schema.field(image).type)
            wanted = [label, *(["split"] if "split" in schema.names else [])]
            fields = {field.name for field in schema.field(image).type} if is_struct else set()
            table = file.read(columns=[*wanted, *([f"{image}.path"] if "path" in fields else [])])
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            largest = max((metadata.row_group(i).total_byte_size for i in range(len(sizes))), default=0)
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise DataError(f"cannot read {printable(shard)}: {printable(error)}") from None
    if largest > _LARGE:
        _log.warning(
            "%s is read %.0f MiB at a time, which is slow in random order; `phiscale data pack` makes shards "
            "that are not",
            printable(shard),
            largest / 2**20,
        )
    names = _class_names(schema.metadata or {}, label)
    number = table.num_rows
    columns = {
        "label": [_label(value, names) for value in table.column(label).to_pylist()],
        "split": table.column("split").to_pylist() if "split" in table.column_names else [None] * number,
        "path": [(value or {}).get("path") for value in table.column(image).to_pylist()]
        if image in table.column_names
        else [None] * number,
    }
    return columns, f"{image}.bytes" if is_struct else image, [0, *accumulate(sizes)]


def _column(names: Sequence[str], wanted: Sequence[str], shard: Path) -> str:
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise DataError(
            f"{printable(shard)} has no column {wanted[0]!r}; its columns: {', '.join(map(printable, names))}"
        )
    return found


def _class_names(metadata: Mapping[bytes, bytes], label: str) -> Sequence[str] | None:
    """Names of the classes as Hugging Face's `datasets` stores them."""
    try:
        names = json.loads(metadata[METADATA])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _label(value: object, names: Sequence[str] | None) -> str | None:
    if isinstance(value, int) and names is not None and 0 <= value < len(names):
        return names[value]
    return None if value is None else str(value)


def _split(value: object, where: str) -> Split | None:
    if value is None or value == "":
        return None
    if str(value).lower() not in SPLIT_NAMES:
        raise DataError(f"{where}: split must be train, val or test, got {printable(value)!r}")
    return SPLIT_NAMES[str(value).lower()]
