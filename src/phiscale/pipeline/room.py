"""How much memory and disk there is for a run."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Room", "look"]

_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a run finds on a machine, in bytes; None where the system does not tell.

    Attributes:
        resident: Memory that this process holds already.
        memory: Memory that it may take in addition.
        disk: Free space where the model directory is to be.
        device: Free memory of the GPU; None where there is none.
    """

    resident: int | None
    memory: int | None
    disk: int | None
    device: int | None = None


def look(out: Path) -> Room:
    """What there is now, for a run that writes to `out`."""
    return Room(
        resident=_resident(),
        memory=_free_memory(),
        disk=_free_disk(out),
        device=torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None,
    )


def _resident() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _free_memory() -> int | None:
    """What the kernel would hand out without swapping, within the container's limit where there is one."""
    known = [free for free in (_available(), _below_limit()) if free is not None]
    return min(known, default=None)


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = _MEMINFO.read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return None


def _below_limit() -> int | None:
    """What is left of a control group's memory; files in the page cache do not count as used."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit = int((_CGROUP / "memory.max").read_text())  # "max" is no number: no limit
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))
    return None


def _free_disk(out: Path) -> int | None:
    absolute = out.absolute()
    with contextlib.suppress(OSError, StopIteration):
        there = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
        return shutil.disk_usage(there).free
    return None
