"""Predictions as text or Parquet, row by row, so that any number of them takes little memory."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from phiscale.data.decode import printable
from phiscale.deploy.predictor import Prediction
from phiscale.errors import require

__all__ = ["FORMATS", "as_csv", "as_json", "as_table", "write_parquet", "write_text"]

_SOURCE_WIDTH = 40
_ROW_GROUP = 10_000


def as_table(predictions: Iterable[Prediction], top_k: int) -> Iterator[str]:
    """Lines for a person: where from, then labels with per cent, or what was wrong."""
    del top_k
    for item in predictions:
        answer = "  ".join(
            f"{printable(label)} {score:.1%}" for label, score in zip(item.labels, item.scores, strict=True)
        )
        text = printable(item.source)
        if len(text) > _SOURCE_WIDTH:
            text = "…" + text[1 - _SOURCE_WIDTH :]
        if item.error is not None:
            answer = f"error: {printable(item.error)}"
        yield f"{text:<{_SOURCE_WIDTH}}  {answer}\n"


def as_json(predictions: Iterable[Prediction], top_k: int) -> Iterator[str]:
    """One JSON array, one object per line."""
    del top_k
    separator = "[\n"
    for item in predictions:
        yield separator + json.dumps(item.to_dict())
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def as_csv(predictions: Iterable[Prediction], top_k: int) -> Iterator[str]:
    """A header, then one line per image: source, label_1, score_1, …, error.

    Args:
        predictions: What to write.
        top_k: Pairs of label and score per line; missing ones stay empty.
    """
    yield _csv_line(["source", *_pair_names(top_k), "error"])
    for item in predictions:
        scores = (f"{score:.6g}" for score in item.scores)
        pairs = [cell for pair in zip(item.labels, scores, strict=True) for cell in pair]
        pairs += [""] * (2 * top_k - len(pairs))
        yield _csv_line([item.source, *pairs, item.error or ""])


FORMATS: dict[str, Callable[[Iterable[Prediction], int], Iterator[str]]] = {
    "table": as_table,
    "json": as_json,
    "csv": as_csv,
}


def write_text(path: Path, rows: Iterable[Prediction], *, format: str, top_k: int) -> None:  # noqa: A002
    """Write rows to a file in one of `FORMATS`.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(FORMATS[format](rows, top_k))


def write_parquet(path: Path, rows: Iterable[Prediction], *, top_k: int) -> None:
    """Write rows to a Parquet file with the columns of `as_csv`; what is missing is null.

    Args:
        path: The file.
        rows: Written in groups of 10,000.
        top_k: Pairs of label and score per row.

    Raises:
        MissingDependencyError: pyarrow is not installed.
        OSError: It cannot be written.
    """
    pa, parquet = require("pyarrow", extra="data"), require("pyarrow.parquet", extra="data")
    names = ["source", *_pair_names(top_k), "error"]
    schema = pa.schema([(name, pa.float32() if name.startswith("score") else pa.string()) for name in names])
    remaining = iter(rows)
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(remaining, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist([_columns(row) for row in group], schema))


def _columns(row: Prediction) -> dict[str, str | float | None]:
    names = iter(_pair_names(len(row.labels)))
    pairs = {next(names): value for pair in zip(row.labels, row.scores, strict=True) for value in pair}
    return {"source": _valid(row.source), **pairs, "error": row.error and _valid(row.error)}


def _pair_names(top_k: int) -> list[str]:
    return [name for number in range(1, top_k + 1) for name in (f"label_{number}", f"score_{number}")]


def _valid(text: str) -> str:
    """A file name that is no valid text would end the whole run when it is written."""
    return text.encode("utf-8", "backslashreplace").decode()


def _csv_line(cells: list[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return _valid(line.getvalue())
