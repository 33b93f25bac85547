"""Predictions into a file, so that a broken run goes on where it stopped.

Beside ``results.parquet`` stands ``results.parquet.part/`` until all is done:

    run.json     what the rows depend on: weights, preprocessing, options
    rows.jsonl   one line per image, written a whole batch at a time
    lock         held by the process that writes

The file itself is made from the rows at the end, and takes its place whole. A run that goes on cuts its
batches where an unbroken one does, so the network sees the same batches and the file is the same to the byte.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from phiscale.data.decode import printable
from phiscale.deploy.predictor import Prediction
from phiscale.errors import DataError
from phiscale.weights import files

__all__ = ["PART_SUFFIX", "ResultsFile"]

PART_SUFFIX = ".part"
_RUN, _ROWS, _LOCK = "run.json", "rows.jsonl", "lock"

Write = Callable[[Path, Iterable[Prediction]], None]


class ResultsFile:
    """Rows on their way into a file; a context manager.

    Args:
        path: The file. Its folder must exist.
        run: What the rows depend on, as plain JSON values; the names are for messages.
        batch_size: Rows that belong together.

    Attributes:
        path: The file.
        part: Where the rows are kept meanwhile.
        total: Rows so far, those of a broken run included.
        failed: How many of them are images that could not be read.

    Raises:
        DataError: The folder is not there or may not be written, another process writes the same file, or
            the rows of a broken run are of another model or of other options.
    """

    def __init__(self, path: Path, *, run: Mapping[str, Any], batch_size: int) -> None:
        self.path = path
        self.part = path.with_name(path.name + PART_SUFFIX)
        self.total = self.failed = 0
        self._batch_size = batch_size
        self._run = json.loads(json.dumps(run))
        self._pending: list[Prediction] = []
        self._log: io.FileIO | None = None
        self._lock = FileLock(self.part / _LOCK)

    def __enter__(self) -> Self:
        folder = self.path.absolute().parent
        if not folder.is_dir():
            raise DataError(f"cannot write {self.path}: the folder {folder} does not exist; make it first")
        with self._explained():
            if self.path.is_dir():
                raise IsADirectoryError(f"{self.path} is a folder")
            self.part.mkdir(exist_ok=True)
            self._take_lock()
        try:
            with self._explained():
                self._check_run()
                self._log = io.FileIO(self.part / _ROWS, "a")
                self._log.truncate(self._whole_batches())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def remaining(self, sources: Iterable[str]) -> Iterator[str]:
        """The images that have no row yet. Those that have one are compared with their rows at once.

        Args:
            sources: All images, in their order.

        Raises:
            DataError: The rows of the broken run are of other images.
        """
        left = iter(sources)
        for row in self._rows():
            source = next(left, None)
            if source != row.source:
                found = "there are fewer images" if source is None else f"it is {printable(source)}"
                raise DataError(
                    f"{self.part} has rows of other images: image {self.total + 1} was "
                    f"{printable(row.source)} and now {found}; name the same images, or delete that folder "
                    "to start anew"
                )
            self._count(row)
        return left

    def add(self, row: Prediction) -> None:
        """Keep a row. It lasts through a kill as soon as its batch is complete.

        Raises:
            DataError: It cannot be written; what was written before stays.
        """
        self._pending.append(row)
        if len(self._pending) == self._batch_size:
            self._flush()

    def finish(self, write: Write) -> None:
        """Make the file from the rows and remove the rows.

        Args:
            write: Writes rows to a path.

        Raises:
            DataError: It cannot be written; the rows stay.
        """
        self._flush()
        with self._explained(), files.replacing(self.path) as temporary:
            write(temporary, self._rows())
        self._close(done=True)

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise DataError(f"another process is writing {self.path}; wait for it, or stop it") from None

    def _check_run(self) -> None:
        """Compare with the broken run, or note what this run is."""
        file = self.part / _RUN
        before = None
        with contextlib.suppress(FileNotFoundError, ValueError):
            before = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(before, dict):  # killed before the first row
            (self.part / _ROWS).unlink(missing_ok=True)
            files.write_text(file, json.dumps(self._run))
            return
        for name, now in self._run.items():
            then = before.get(name)
            if then != now:
                values = "" if isinstance(now, list | dict) else f" ({then} then, {now} now)"
                raise DataError(
                    f"{self.part} is of a broken run with other {name}{values}; give the same again, or "
                    "delete that folder to start anew"
                )

    def _whole_batches(self) -> int:
        """Bytes of the rows without a batch that a kill or a full disk has torn."""
        whole = position = 0
        with (self.part / _ROWS).open("rb") as log:
            for number, line in enumerate(log, start=1):
                position += len(line)
                if number % self._batch_size == 0 and line.endswith(b"\n"):
                    whole = position
        return whole

    def _rows(self) -> Iterator[Prediction]:
        with (self.part / _ROWS).open("rb") as log:
            for line in log:
                row = json.loads(line)
                labels, scores = tuple(row["labels"]), tuple(row["scores"])
                yield Prediction(source=row["source"], labels=labels, scores=scores, error=row["error"])

    def _flush(self) -> None:
        lines = "".join(json.dumps(row.to_dict()) + "\n" for row in self._pending).encode("ascii")
        assert self._log is not None
        with self._explained():
            written = 0
            while written < len(lines):  # a disk that fills up takes a part
                written += self._log.write(lines[written:]) or 0
        for row in self._pending:
            self._count(row)
        self._pending.clear()

    def _count(self, row: Prediction) -> None:
        self.total += 1
        self.failed += row.error is not None

    def _close(self, *, done: bool = False) -> None:
        if self._log is not None:
            self._log.close()
        rows = self.part / _ROWS
        empty = not rows.exists() or rows.stat().st_size == 0
        self._lock.release()
        if done or empty:
            self._remove_part()

    def _remove_part(self) -> None:
        """Remove what is ours; a folder that somebody else has files in stays with them."""
        with contextlib.suppress(OSError):
            # A kill in the middle of writing run.json leaves its temporary file.
            for file in (*self.part.glob(f".{_RUN}.*"), *(self.part / name for name in (_RUN, _ROWS, _LOCK))):
                file.unlink(missing_ok=True)
            self.part.rmdir()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn a full disk and the like into one line."""
        try:
            yield
        except OSError as error:
            kept = f"; {self.total} rows are kept in {self.part}, and the same command goes on"
            raise DataError(
                f"cannot write {self.path}: {error.strerror or error}{kept if self.total else ''}"
            ) from None
