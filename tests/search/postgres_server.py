"""A PostgreSQL server of its own for a test, on a socket in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The server refuses to run as root.
_USER: dict[str, Any] = {"user": "nobody"} if hasattr(os, "geteuid") and os.geteuid() == 0 else {}
_SECONDS = 60.0


def find_binary(name: str) -> str:
    """A program of PostgreSQL; skips the test where it is not installed."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    found = shutil.which(name) or next((str(path) for path in versions), None)
    if found is None:
        pytest.skip(f"no PostgreSQL server on this machine ({name} is not found)")
    return found


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """Start a server and yield the URL of an empty database."""
    initdb, postgres = find_binary("initdb"), find_binary("postgres")
    # Not tmp_path: another user must be able to enter it, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if _USER:
            shutil.chown(folder, user=_USER["user"])
        data = folder / "data"
        quiet: dict[str, Any] = {"cwd": folder, "capture_output": True, "check": True, **_USER}
        subprocess.run([initdb, "-D", data, "-A", "trust", "-U", "tester", "--no-sync"], **quiet)
        command = [postgres, "-D", str(data), "-k", name, "-c", "listen_addresses=", "-c", "fsync=off"]
        with (folder / "server.log").open("wb") as log:
            server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **_USER)
        try:
            _wait_until_ready(server, folder)
            yield f"postgresql://tester@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # SIGTERM would wait for clients
            server.wait(timeout=_SECONDS)


def _wait_until_ready(server: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + _SECONDS
    while "ready to accept connections" not in (folder / "server.log").read_text(errors="replace"):
        if server.poll() is not None or time.monotonic() > end:
            pytest.fail(f"PostgreSQL did not start: {(folder / 'server.log').read_text(errors='replace')}")
        time.sleep(0.05)
