"""Run a program and say how long it took and how much memory it held at most.

    python benchmarks/launch.py REPORT.json PROGRAM [ARGUMENT ...]

It is a process of its own, and a small one: a child's peak as the kernel counts it is at least that of the
process that started it, and one that measures networks is large.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main(report: str, command: list[str]) -> int:
    """Run the command and write what it took; returns its exit status."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "max_rss_bytes": usage.ru_maxrss * unit,
    }
    Path(report).write_text(json.dumps(found), encoding="utf-8")
    child.returncode = code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
