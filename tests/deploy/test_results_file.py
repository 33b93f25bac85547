"""Results that are written while a run lasts, and runs that are broken off."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from phiscale.deploy import results_file
from phiscale.deploy.predictor import Prediction
from phiscale.deploy.results_file import ResultsFile
from phiscale.deploy.rows import write_text
from phiscale.errors import DataError

RUN = {"weights": "abc", "top k": 2, "class names": ("cat", "dog")}
ROWS = [
    Prediction(source=f"{index}\udce9.png", labels=("cat", "dog"), scores=(1 - index / 90, index / 90))
    if index % 5
    else Prediction(source=f"{index}.png", error="not an image")
    for index in range(22)
]
SOURCES = [row.source for row in ROWS]
write = partial(write_text, format="csv", top_k=2)


def opened(path: Path, **changes: Any) -> ResultsFile:
    return ResultsFile(path, run={**RUN, **changes}, batch_size=4)


def write_all(path: Path, rows: Iterable[Prediction] = ROWS) -> int:
    """Write what has no row yet, as a run does. Returns how many those were."""
    by_source = {row.source: row for row in rows}
    with opened(path) as results:
        remaining = list(results.remaining(by_source))
        for source in remaining:
            results.add(by_source[source])
        results.finish(write)
    assert results.total == len(by_source)
    return len(remaining)


@pytest.fixture
def unbroken(tmp_path: Path) -> bytes:
    assert write_all(tmp_path / "unbroken.csv") == len(ROWS)
    return (tmp_path / "unbroken.csv").read_bytes()


def add(results: ResultsFile, rows: Iterable[Prediction] = ROWS) -> None:
    for row in rows:
        results.add(row)


def break_off(path: Path, after: int) -> None:
    with opened(path) as results:
        add(results, ROWS[:after])


def test_nothing_is_left_beside_a_finished_file(tmp_path: Path, unbroken: bytes) -> None:
    assert [path.name for path in tmp_path.iterdir()] == ["unbroken.csv"]
    assert unbroken.decode().count("\n") == 1 + len(ROWS)


@pytest.mark.parametrize("after", [0, 1, 3, 4, 5, 8, 21, 22])
def test_a_broken_run_goes_on(tmp_path: Path, unbroken: bytes, after: int) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    break_off(path, after)
    assert path.read_text() == "old"
    assert write_all(path) == len(ROWS) - after // 4 * 4
    assert path.read_bytes() == unbroken
    assert not (tmp_path / "out.csv.part").exists()


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_torn_row_is_written_again(tmp_path: Path, unbroken: bytes, cut: int) -> None:
    path, log = tmp_path / "out.csv", tmp_path / "out.csv.part" / "rows.jsonl"
    break_off(path, 12)
    log.write_bytes(log.read_bytes()[:-cut])
    assert write_all(path) == len(ROWS) - 8
    assert path.read_bytes() == unbroken


def test_killed_at_the_very_beginning_and_end(tmp_path: Path, unbroken: bytes) -> None:
    path = tmp_path / "out.csv"
    (tmp_path / "out.csv.part").mkdir()
    (tmp_path / "out.csv.part" / "rows.jsonl").write_bytes(b'{"sou')
    assert write_all(path) == len(ROWS)

    def killed(temporary: Path, rows: Iterable[Prediction]) -> None:
        write(temporary, list(rows)[:3])
        raise KeyboardInterrupt

    with opened(path) as results:
        add(results)
        with pytest.raises(KeyboardInterrupt):
            results.finish(killed)
    assert path.read_bytes() == unbroken  # of the run before
    assert write_all(path) == 2  # the last batch was not full
    assert path.read_bytes() == unbroken
    assert [name.name for name in tmp_path.iterdir() if name.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "def"}, r"is of a broken run with other weights \(abc then, def now\); give the same"),
        ({"top k": 3}, r"with other top k \(2 then, 3 now\)"),
        ({"class names": ["cat", "owl"]}, r"with other class names; give the same again, or delete"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "out.csv"
    break_off(path, 8)
    before = (tmp_path / "out.csv.part" / "rows.jsonl").read_bytes()
    with pytest.raises(DataError, match=message), opened(path, **changes):
        pass
    assert (tmp_path / "out.csv.part" / "rows.jsonl").read_bytes() == before
    with opened(path):  # the lock is free again
        pass


@pytest.mark.parametrize(
    ("sources", "found"),
    [(["new.png", *SOURCES], "it is new.png"), (SOURCES[:3], "there are fewer images")],
)
def test_other_images_are_refused(tmp_path: Path, sources: list[str], found: str) -> None:
    path = tmp_path / "out.csv"
    break_off(path, 8)
    with opened(path) as results, pytest.raises(DataError, match=found) as caught:
        results.remaining(sources)
    assert "\n" not in str(caught.value)
    assert write_all(path) == len(ROWS) - 8


def test_more_images_than_before_go_on(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    break_off(path, 8)
    more = [*ROWS, Prediction(source="late.png", labels=("cat", "dog"), scores=(1.0, 0.0))]
    assert write_all(path, more) == len(more) - 8


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with opened(path), pytest.raises(DataError, match=r"another process is writing .*out\.csv"), opened(path):
        pass


class FullDisk(io.FileIO):
    """Takes some bytes, then a part of the next ones, then none."""

    room = 1000

    def write(self, data: Any, /) -> int:
        taken = super().write(data[: max(0, self.room - self.tell())])
        if taken == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return taken


def test_a_full_disk_keeps_what_is_written(
    tmp_path: Path, unbroken: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.csv"
    with monkeypatch.context() as full:
        full.setattr(results_file.io, "FileIO", FullDisk)  # type: ignore[attr-defined]
        with opened(path) as results, pytest.raises(DataError) as caught:
            add(results)
    kept = results.total
    assert 0 < kept < len(ROWS)
    assert str(caught.value) == (
        f"cannot write {path}: No space left on device; {kept} rows are kept in {path}.part, and the same "
        "command goes on"
    )
    assert not path.exists()
    assert write_all(path) == len(ROWS) - kept
    assert path.read_bytes() == unbroken


def test_no_room_for_the_finished_file(
    tmp_path: Path, unbroken: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.csv"

    def full(temporary: Path, rows: Iterable[Prediction]) -> None:
        write(temporary, list(rows)[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(path) as results:
        add(results)
        with pytest.raises(DataError, match="No space left on device; 22 rows are kept"):
            results.finish(full)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out.csv.part", "unbroken.csv"]
    write_all(path)
    assert path.read_bytes() == unbroken


def test_no_room_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("phiscale.weights.files._sync", full)
    with pytest.raises(DataError, match=r"No space left on device$"), opened(tmp_path / "out.csv"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, message in (
        (tmp_path / "none" / "out.csv", "none does not exist; make it first"),
        (tmp_path / "file" / "out.csv", "file does not exist; make it first"),
        (tmp_path / "folder", "is a folder"),
    ):
        with pytest.raises(DataError, match=message), opened(path):
            pass


def test_files_of_somebody_else_stay(tmp_path: Path, unbroken: bytes) -> None:
    path = tmp_path / "out.csv"
    (tmp_path / "out.csv.part").mkdir()
    (tmp_path / "out.csv.part" / "mine.txt").write_text("mine")
    (tmp_path / "out.csv.part" / ".run.json.0123456789ab.phiscale-tmp").write_text("{")
    write_all(path)
    assert path.read_bytes() == unbroken
    assert [file.name for file in (tmp_path / "out.csv.part").iterdir()] == ["mine.txt"]


def test_rows_are_plain_lines(tmp_path: Path) -> None:
    break_off(tmp_path / "out.csv", 4)
    lines = (tmp_path / "out.csv.part" / "rows.jsonl").read_text(encoding="ascii").splitlines()
    assert [json.loads(line) for line in lines] == [row.to_dict() for row in ROWS[:4]]
