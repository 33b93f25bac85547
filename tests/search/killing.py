"""A search in a process of its own that a test stops, and what it had done by then."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import killable_search
import pytest

from phiscale.search.store import TrialStore


def start(folder: Path, where: str, *, seconds: float = 0.15) -> subprocess.Popen[bytes]:
    """`killable_search` in a folder, with its arguments."""
    folder.mkdir(exist_ok=True)
    (folder / "ready").unlink(missing_ok=True)
    return subprocess.Popen(
        [sys.executable, killable_search.__file__, str(folder), where, str(seconds)],
        start_new_session=True,
        # A shell's background job, as which the suite may run, has its children ignore SIGINT.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def wait_until_ready(driver: subprocess.Popen[bytes], folder: Path) -> None:
    """Until the search begins, or is over."""
    while not (folder / "ready").exists() and driver.poll() is None:
        time.sleep(0.01)


def recorded(folder: Path) -> set[str]:
    """The keys of all recorded trials."""
    if not folder.exists():
        return set()
    with TrialStore(folder / "trials.db") as store:
        return {trial.user_attrs["key"] for trial in store.study.get_trials(deepcopy=False)}


def log_lines(log: Path) -> list[tuple[str, int]]:
    """(key, process) of each training that was begun, as `made_up.Slow` writes them."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(key, int(pid)) for key, pid in (line.split() for line in lines)]


def wait_for_the_end_of(pid: int) -> None:
    """A worker has no parent left to reap it here, so a zombie counts as ended."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    pytest.fail(f"worker {pid} lives on without its driver")
