"""Predictions as text, row by row, so that the first rows are there before the last image is read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator

from phiscale.data.decode import printable
from phiscale.deploy.predictor import Prediction

__all__ = ["FORMATS", "as_csv", "as_json", "as_table"]

_SOURCE_WIDTH = 40


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
    numbers = range(1, top_k + 1)
    header = [name for number in numbers for name in (f"label_{number}", f"score_{number}")]
    yield _csv_line(["source", *header, "error"])
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


def _csv_line(cells: list[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    # A file name that is no valid text would end the whole run when it is written.
    return line.getvalue().encode("utf-8", "backslashreplace").decode()
