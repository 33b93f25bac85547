"""Files that are whole or absent: written under a temporary name, then moved into place."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing", "sweep", "sync_folder", "write_text"]

_SUFFIX = ".phiscale-tmp"
_STALE_SECONDS = 3600.0


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`; what is written there takes the place of `path` at the end.

    The content reaches the disk before the move, and the move is atomic (a rename), so at every
    moment `path` is either what it was or all of the new content. An exception leaves it as it was.

    Args:
        path: The file to write. Its folder must exist.

    Yields:
        The temporary path to write to, with ordinary permissions, in the same folder.

    Raises:
        OSError: The disk is full, the folder is read-only, and the like.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_SUFFIX}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def sweep(folder: Path) -> None:
    """Remove temporary files that a killed process left in `folder`.

    Only those older than an hour: a younger one may belong to a process that is writing now.
    """
    for left in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()


def sync_folder(folder: Path) -> None:
    """Make moves in `folder` last through a power cut, where the system can do that."""
    # Windows cannot open a folder, and some network file systems refuse to sync one.
    with contextlib.suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    # Windows syncs only what is open for writing; a folder opens for reading only.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
