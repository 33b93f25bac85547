"""Pillow without its warnings, in any number of threads."""

from __future__ import annotations

import threading
import warnings
from types import TracebackType

__all__ = ["QUIET_PILLOW"]


class _QuietPillow:
    """Silences Pillow's warnings (bombs, corrupt EXIF, odd palettes) while anybody is inside.

    The filters of `warnings` belong to the whole process. If two threads saved and restored them
    each on its own, the last to leave could restore the filters of the first for good; so the first
    one in changes them and the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._saved is not None:
                self._saved.__exit__(kind, error, trace)
                self._saved = None


# One for the process, like the filters that it guards; outside of a `with` it holds nothing.
QUIET_PILLOW = _QuietPillow()
