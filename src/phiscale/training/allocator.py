"""Keep freed memory in the process: the one allocator setting that training on a CPU needs."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["give_back_freed_memory", "keep_freed_memory"]

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep freed blocks instead of giving them back to the kernel.

    By default glibc serves every block above 32 MB at most from a mapping of its own and unmaps it on
    free. An activation of a training step is such a block: it is mapped, faulted in page by page and
    zeroed by the kernel, and unmapped again, in every step. With no mappings (M_MMAP_MAX = 0) and no
    trimming of the heap (M_TRIM_THRESHOLD = -1) the pages stay. Measured on EfficientNet-B0, batch 32
    at 224 px, two cores: 16 -> 21 to 25 images/s, results unchanged.

    The setting holds for the whole process and cannot be taken back; resident memory then stays at its
    peak until the process ends. Safe to call more than once.

    Returns:
        Whether the setting was made; False where the C library is not glibc (macOS, Windows, musl).
    """
    libc = _glibc()
    return libc is not None and all(
        libc.mallopt(setting, value) for setting, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    )


def give_back_freed_memory() -> None:
    """Give what has been freed so far back to the kernel, once, where the C library is glibc.

    For after a measurement, whose small blocks would else lie about while the run needs large ones.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        _ = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        return None
    return libc
