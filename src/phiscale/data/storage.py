"""Files that are whole or absent, and where those go that can be made again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["PART_SUFFIX", "default_cache_dir", "replacing"]

PART_SUFFIX = ".part"


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/phiscale``, or ``~/.cache/phiscale``. Files there can be deleted at any time."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "phiscale"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when all went well, and leaves nothing if not."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=PART_SUFFIX)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
