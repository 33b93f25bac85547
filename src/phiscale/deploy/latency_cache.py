"""Measured latencies on disk, a small file for each measurement, so that none is made twice for nothing.

$PHISCALE_CACHE/latency, or $XDG_CACHE_HOME/phiscale/latency, or ~/.cache/phiscale/latency
    3f0a….json      networks, how they were run, on which machine, and what they took
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phiscale.data.cache import default_cache_dir
from phiscale.deploy.timing import Latency
from phiscale.spec import NetworkSpec
from phiscale.weights.files import write_text

__all__ = ["LatencyCache", "latency_folder"]

# What does not change the time of an answer: labels, and what is for training only.
IRRELEVANT = ("name", "dropout", "drop_path", "norm_momentum", "norm_eps")


def latency_folder() -> Path:
    """Where latencies are kept. Files there can be deleted at any time."""
    chosen = os.environ.get("PHISCALE_CACHE")
    return (Path(chosen).expanduser() if chosen else default_cache_dir()) / "latency"


class LatencyCache:
    """Latencies by networks and conditions.

    Networks that took turns are one measurement, with one file: their times are of one moment and can be
    compared, which those of two days cannot.

    A file that cannot be read counts as absent, and one that cannot be written is left out: a cache that
    fails costs time, no answer.

    Args:
        conditions: All else that the time depends on: engine, precision, threads, batch and machine.
        folder: Where the files are; None is `latency_folder`.
    """

    def __init__(self, conditions: Mapping[str, Any], *, folder: Path | None = None) -> None:
        self._conditions = dict(conditions)
        self._folder = latency_folder() if folder is None else folder

    def read(self, specs: Sequence[NetworkSpec], *, runs: int) -> list[Latency] | None:
        """The latencies of networks that took turns, or None where they have not been measured so.

        Args:
            specs: The networks, in order.
            runs: How many runs were asked for.
        """
        try:
            record = json.loads(self._path(specs, runs).read_text(encoding="utf-8"))
            latencies = [Latency(**latency) for latency in record["latencies"]]
            sensible = all(0 < latency.median_ms <= latency.p90_ms < math.inf for latency in latencies)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return latencies if sensible and len(latencies) == len(specs) else None

    def write(self, specs: Sequence[NetworkSpec], latencies: Sequence[Latency], *, runs: int) -> None:
        """Keep a measurement.

        Args:
            specs: The networks, in order.
            latencies: What they took.
            runs: How many runs were asked for, which may be more or fewer than there were.
        """
        record = {
            "latencies": [dataclasses.asdict(latency) for latency in latencies],
            "conditions": self._conditions,
            "networks": [spec.to_dict() for spec in specs],
        }
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._path(specs, runs), json.dumps(record, indent=1) + "\n")

    def _path(self, specs: Sequence[NetworkSpec], runs: int) -> Path:
        networks = [
            {name: value for name, value in spec.to_dict().items() if name not in IRRELEVANT}
            for spec in specs
        ]
        text = json.dumps([networks, runs, self._conditions], sort_keys=True)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
