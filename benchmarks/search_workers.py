"""A search of sixteen trainings with one worker and with two, on the emoji of the demo.

    python -m benchmarks.search_workers [--trials 16] [--seconds 8] [--rounds 1] [--output FILE]

Prints seconds and ratio as JSON. The start of the workers counts, the scan and the decoding of images do not.
Leave the machine alone meanwhile: it needs two idle cores. The exit code is 1 where two workers take more
than 0.6 of one worker's time, or where a score depends on the number of workers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, versions
from phiscale.deploy.samples import DEMO_DATA
from phiscale.pipeline.forecast import seconds_per_epoch
from phiscale.pipeline.trial import TrialPlan, one_thread, plan_trials
from phiscale.search.objective import Score, Trial
from phiscale.search.runner import run_trials
from phiscale.search.store import TrialStore
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

__all__ = ["main"]

MOST = 0.6
WORKERS = (1, 2)
NETWORK = NetworkSpec(
    name="small",
    stem=StemSpec(out_channels=16, stride=1),
    stages=(
        StageSpec(block="mbconv", out_channels=16, se_ratio=0.25),
        StageSpec(block="mbconv", out_channels=24, num_layers=2, stride=2, expand_ratio=4, se_ratio=0.25),
        StageSpec(block="mbconv", out_channels=40, num_layers=2, stride=2, expand_ratio=4, kernel_size=5),
    ),
    head=HeadSpec(out_channels=160),
    image_size=(32, 32),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=8.0, help="About how long a training takes.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, help="Write the JSON to a file, too.")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), trials=options.trials, seconds=options.seconds, rounds=options.rounds)
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")
    return 0 if result["ratio"] <= MOST and result["same_scores"] else 1


def measure(folder: Path, *, trials: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Run the search anew for each number of workers, in turn.

    Args:
        folder: For decoded images and results.
        trials: How many trainings, each with a seed of its own.
        seconds: About how long each takes, with one thread.
        rounds: How often each number of workers has its turn.
    """
    facts = machine(1)  # with the load before anything runs
    plan = plan_trials(DEMO_DATA, baseline=NETWORK, scratch=folder / "scratch", cache_dir=folder / "cache")
    plan.objective.prepare()
    with one_thread():
        epoch = seconds_per_epoch(replace(plan.fit, spec=plan.baseline))
    epochs = max(1, round(seconds / epoch))
    asked = [Trial(spec=plan.baseline, seed=seed, epochs=epochs) for seed in range(trials)]
    times: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    found: list[Mapping[str, Score]] = []
    for turn in range(rounds):
        for workers in WORKERS:
            took, scores = _search(plan, asked, folder / f"{turn}-{workers}.db", workers)
            times[workers].append(took)
            found.append(scores)
    medians = {workers: statistics.median(values) for workers, values in times.items()}
    one, two = WORKERS
    return {
        "trials": trials,
        "epochs": epochs,
        "network": plan.baseline.name,
        "images": len(plan.objective.source.split("train")),
        "trial_seconds": medians[one] / trials,
        "seconds": {f"{workers}": values for workers, values in times.items()},
        "ratio": medians[two] / medians[one],
        "wanted": MOST,
        "same_scores": len({_accuracies(scores) for scores in found}) == 1,
        "machine": facts,
        "versions": versions(),
    }


def _search(
    plan: TrialPlan, trials: Sequence[Trial], storage: Path, workers: int
) -> tuple[float, Mapping[str, Score]]:
    with TrialStore(storage, settings=plan.objective.identity()) as store:
        began = time.perf_counter()
        scores = run_trials(trials, plan.objective, store, workers=workers)
        return time.perf_counter() - began, scores


def _accuracies(scores: Mapping[str, Score]) -> tuple[float, ...]:
    return tuple(score.top1 for score in scores.values())


if __name__ == "__main__":
    raise SystemExit(main())
