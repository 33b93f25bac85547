"""Training EfficientNet-B0: this project as it comes beside timm and torchvision, images/s and memory.

    python -m benchmarks.training [--quick] [--rounds 5] [--threads 2] [--output FILE]

Each contender has a process of its own in every round, and they take turns. Prints tables and a PASS or FAIL
for each bar, and writes `benchmarks/results/training.json`, of which `tools/make_training_page.py` makes a
page. Where there is a GPU, everybody trains there, and what is written says so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bars import Bar
from benchmarks.measure import limit_threads, machine, ratio, versions
from benchmarks.scripts.train_steps import WAYS

__all__ = ["BARS", "SHAPES", "check", "main"]

OUTPUT = Path(__file__).parent / "results" / "training.json"
OURS = "ours"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a batch.

    Attributes:
        batch: Images.
        side: In pixels.
        steps: Timed in a process.
    """

    batch: int
    side: int
    steps: int

    def __str__(self) -> str:
        return f"batch {self.batch} at {self.side} px"


SHAPES = (Shape(batch=32, side=224, steps=3), Shape(batch=128, side=32, steps=8))
QUICK = (Shape(batch=2, side=64, steps=1), Shape(batch=4, side=32, steps=1))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How many times as fast as others this project must train, or what share of their memory it may take.

    Attributes:
        shape: Index into the shapes.
        peers: Keys of `WAYS`, the fastest of which counts.
        what: Of the peers, in words.
        bound: The ratio.
        memory: Whether of memory, where less is better.
    """

    shape: int
    peers: tuple[str, ...]
    what: str
    bound: float
    memory: bool = False


_THEIRS = tuple(way for way, setup in WAYS.items() if setup.library != "phiscale")
BARS = (
    Wanted(shape=0, peers=("timm",), what="timm as it comes", bound=2.8),
    Wanted(shape=0, peers=("torchvision",), what="torchvision as it comes", bound=2.8),
    Wanted(shape=0, peers=_THEIRS, what="the best of timm and torchvision", bound=1.3),
    Wanted(shape=1, peers=("timm",), what="timm as it comes", bound=2.5),
    Wanted(shape=1, peers=("torchvision",), what="torchvision as it comes", bound=4.0),
    Wanted(shape=0, peers=("timm",), what="timm as it comes", bound=0.65, memory=True),
)


def measure(shape: Shape, ways: Sequence[str], *, rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row per contender; one whose process fails is shown and left out."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    order = list(ways)
    for _ in range(rounds):
        for way in [way for way in order if way in found]:
            numbers = [str(number) for number in (shape.batch, shape.side, threads, shape.steps)]
            command = [sys.executable, "-m", "benchmarks.scripts.train_steps", way, *numbers]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"  {WAYS[way].name} failed:\n{done.stderr[-2000:]}")
                del found[way]
                continue
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
        order = order[1:] + order[:1]
    return [_row(way, shape, results) for way, results in found.items()]


def _row(way: str, shape: Shape, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rounds = [statistics.median(result["steps_ms"]) for result in results]
    return {
        "way": way,
        "name": WAYS[way].name,
        "batch": shape.batch,
        "side": shape.side,
        "images_per_second": 1000 * shape.batch / statistics.median(rounds),
        "peak_bytes": int(statistics.median(result["peak_bytes"] for result in results)),
        "chosen": [result["chosen"] for result in results if result["chosen"]],
        "rounds_ms": rounds,
    }


def show(shape: Shape, rows: Sequence[dict[str, Any]]) -> None:
    """Print a table, times against the first row's."""
    print(f"\nefficientnet_b0, {shape}\n  {'':34}{'img/s':>9}{'×':>7}{'MiB':>8}")
    for row in rows:
        times = row["images_per_second"] / rows[0]["images_per_second"]
        memory = row["peak_bytes"] / 2**20
        print(f"  {row['name']:34}{row['images_per_second']:9.1f}{times:7.2f}{memory:8.0f}")
        for chosen in dict.fromkeys(row["chosen"]):
            print(f"      {chosen}")


def check(tables: Sequence[Sequence[dict[str, Any]]], shapes: Sequence[Shape] = SHAPES) -> list[Bar]:
    """Hold what was measured against what must be."""
    return [_check(wanted, tables[wanted.shape], shapes[wanted.shape]) for wanted in BARS]


def _check(wanted: Wanted, rows: Sequence[dict[str, Any]], shape: Shape) -> Bar:
    sign, kind = ("≤", "peak of memory as a share of") if wanted.memory else ("≥", "times")
    what, bound = f"training B0, {shape}: {kind} {wanted.what}", f"{sign} {wanted.bound}"
    ours = next((row for row in rows if row["way"] == OURS), None)
    peers = [row for row in rows if row["way"] in wanted.peers]
    if ours is None or not peers:
        return Bar(what=what, wanted=bound)
    peer = max(peers, key=lambda row: float(row["images_per_second"]))
    if wanted.memory:
        found = ours["peak_bytes"] / peer["peak_bytes"]
        sizes = f"{ours['peak_bytes'] / 2**20:.0f} of {peer['peak_bytes'] / 2**20:.0f} MiB"
        verdict = found <= wanted.bound
        return Bar(what=what, wanted=bound, found=f"{found:.2f} ({sizes})", verdict=_verdict(verdict))
    # Of the rounds, each of which has both within seconds of each other.
    median, low, high = ratio(peer["rounds_ms"], ours["rounds_ms"])
    text = f"{median:.2f} × ({low:.2f} to {high:.2f}), against {peer['name']}"
    return Bar(what=what, wanted=bound, found=text, verdict=_verdict(median >= wanted.bound))


def _verdict(holds: bool) -> Any:
    return "PASS" if holds else "FAIL"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns 1 where a bar fails."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small and few: shows that all of it runs")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each contender (5)")
    parser.add_argument("--threads", type=int, default=2, help="of everybody (2)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="some of the contenders")
    parser.add_argument("--output", type=Path, help="JSON (results/training.json; none with --quick)")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    limit_threads(args.threads)
    measured = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(args.threads),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
        "rounds": args.rounds,
    }
    shapes, tables = QUICK if args.quick else SHAPES, []
    for shape in shapes:
        rows = measure(shape, args.ways, rounds=1 if args.quick else args.rounds, threads=args.threads)
        show(shape, rows)
        tables.append(rows)
    bars = check(tables, shapes)
    print()
    for bar in bars:
        print(f"{bar.verdict:12} {bar.what}: {bar.found or '–'} (wanted {bar.wanted})")
    output = args.output or (None if args.quick else OUTPUT)
    if output is not None:
        content = {"measured": measured, "tables": tables, "bars": [asdict(bar) for bar in bars]}
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if args.quick else int(any(bar.verdict == "FAIL" for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
