from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pyarrow import parquet

from phiscale.deploy.predictor import Prediction
from phiscale.deploy.rows import FORMATS, as_csv, as_json, as_table, write_parquet

ROWS = (
    Prediction(source='a,"b".png', labels=("cat", "dog, big"), scores=(0.75, 0.25)),
    Prediction(source=os.fsdecode(b"caf\xe9\x1b[31m.png"), error="not an image"),
)


def test_json_is_one_document() -> None:
    assert json.loads("".join(as_json(ROWS, 2))) == [row.to_dict() for row in ROWS]
    assert json.loads("".join(as_json(ROWS[:1], 2))) == [ROWS[0].to_dict()]
    assert json.loads("".join(as_json((), 2))) == []


def test_csv_has_one_line_per_image() -> None:
    text = "".join(as_csv(ROWS, 2))
    text.encode()  # broken file names are escaped
    lines = list(csv.reader(io.StringIO(text)))
    assert lines[0] == ["source", "label_1", "score_1", "label_2", "score_2", "error"]
    assert lines[1] == ['a,"b".png', "cat", "0.75", "dog, big", "0.25", ""]
    assert lines[2][1:] == ["", "", "", "", "not an image"]
    assert len(lines) == 3


def test_table_is_safe_to_show() -> None:
    lines = "".join(as_table(ROWS, 2)).splitlines()
    assert lines[0].split("  ", 1)[1].strip() == "cat 75.0%  dog, big 25.0%"
    assert "error: not an image" in lines[1]
    assert "\x1b" not in lines[1]
    lines[1].encode()
    [long] = as_table([Prediction(source="x" * 100 + "end.png", labels=("cat",), scores=(1.0,))], 1)
    assert "end.png  cat 100.0%" in long
    assert len(long) < 60


def test_parquet_has_the_columns_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_parquet(path, ROWS, top_k=2)
    table = parquet.read_table(path)
    assert table.column_names == next(as_csv((), 2)).strip().split(",")
    first, second = table.to_pylist()
    assert first == {
        "source": 'a,"b".png',
        "label_1": "cat",
        "score_1": 0.75,
        "label_2": "dog, big",
        "score_2": 0.25,
        "error": None,
    }
    assert second["source"] == "caf\\udce9\x1b[31m.png"
    assert (second["label_1"], second["score_2"], second["error"]) == (None, None, "not an image")
    write_parquet(path, (), top_k=1)
    assert parquet.read_table(path).num_rows == 0


def test_parquet_is_written_in_groups(tmp_path: Path) -> None:
    def rows() -> Iterator[Prediction]:
        for index in range(25_000):
            yield Prediction(source=str(index), labels=("cat",), scores=(1.0,))

    write_parquet(tmp_path / "rows.parquet", rows(), top_k=1)
    file = parquet.ParquetFile(tmp_path / "rows.parquet")
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [
        10_000,
        10_000,
        5_000,
    ]
    assert file.read(["source"]).column("source").to_pylist() == [str(index) for index in range(25_000)]


def test_rows_come_as_they_are_made() -> None:
    made = 0

    def slow() -> Iterator[Prediction]:
        nonlocal made
        for row in ROWS:
            made += 1
            yield row

    for name, write in FORMATS.items():
        made = 0
        texts = write(slow(), 2)
        if name == "csv":
            next(texts)
        next(texts)
        assert made == 1, name
