"""Compare the samplers of the baseline search with random search, and its front with the template.

Every sampler searches the same space with several seeds, all at the same time on one pool of processes and
with one store of results: a network that one search has trained is not trained again for another. All short
trainings have the same seed, so that the rewards can be compared. Then the front of the best search and the
template are trained in full:

    python tools/compare_samplers.py torchvision:FashionMNIST:ROOT --macs 5M --workers 14 --out compared/

The same command goes on with a comparison that was stopped at any moment. The folder then holds

    trials.db                           the trainings
    rewards.csv                         best reward after each trial of each search
    comparison.json                     medians over the seeds, and the full trainings
    comparison.png, comparison.svg      best reward so far against trials, median and range of the seeds
    front/                              what `phiscale search baseline` writes, of the best search

Trainings use the GPU where there is one. Rewards from a GPU and from a CPU differ a little, so a comparison
should go on where it began.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pickle
import platform
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from phiscale.cli.options import Macs, TrainImages, make_overrides
from phiscale.deploy.machine import this_machine
from phiscale.errors import PhiscaleError
from phiscale.evaluation.plots import save_png_and_svg
from phiscale.pipeline.baseline import BaselinePlan, default_effort, plan_baseline, write_results
from phiscale.pipeline.coefficients import SCRATCH, TRIALS, run_folder
from phiscale.scaling.budget import Budget
from phiscale.search.baseline import BaselineSearch, Effort, Proxy, explore, search_baseline
from phiscale.search.baseline_report import search_to_dict
from phiscale.search.objective import Objective, Score, Trial
from phiscale.search.proposals import SAMPLERS, SamplerName
from phiscale.search.reward import Goal
from phiscale.search.runner import Progress
from phiscale.search.space import SearchSpace
from phiscale.search.store import TrialStore
from phiscale.search.workers import Processes
from phiscale.weights.files import write_text

RANDOM: SamplerName = "random"
COLOURS = {"nsga2": "#4477aa", "tpe": "#cc3344", "random": "#888888"}
COLUMNS = ("sampler", "seed", "trial", "top1", "macs", "reward", "best_reward")
PACKAGES = ("phiscale", "torch", "optuna")
FRONT = "front"
BEGAN = time.monotonic()


class Search(NamedTuple):
    """A sampler with a seed."""

    sampler: SamplerName
    seed: int

    def __str__(self) -> str:
        return f"{self.sampler} seed {self.seed}"


Found = Mapping[Search, Sequence[Proxy]]
"""Search → its short trainings, in the order of the proposals."""


# -- trainings -------------------------------------------------------------------------------------


class Packed:
    """An objective that is pickled once, however many processes it is sent to."""

    def __init__(self, objective: Objective) -> None:
        self._data = pickle.dumps(objective)

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)


class Pool:
    """A `phiscale.search.baseline.Train` for several searches at once, each in a thread of its own.

    Trainings wait in one line for the next free process. One that two searches ask for is done once.
    """

    def __init__(self, objective: Objective, store: TrialStore, *, workers: int) -> None:
        self._objective, self._store = Packed(objective), store
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers)
        # Each thread has a process of its own, and waits for its answer.
        self._of_thread = threading.local()
        self._processes: list[Processes] = []
        self._futures: dict[str, Future[Score]] = {}
        self.trained = 0

    def __call__(self, trials: Iterable[Trial], *, progress: Progress | None = None) -> dict[str, Score]:
        futures = {trial.key: self._begin(trial) for trial in trials}
        return {key: future.result() for key, future in futures.items()}

    def _begin(self, trial: Trial) -> Future[Score]:
        with self._lock:
            if trial.key not in self._futures:
                self._futures[trial.key] = self._recorded(trial) or self._threads.submit(self._train, trial)
            return self._futures[trial.key]

    def _recorded(self, trial: Trial) -> Future[Score] | None:
        score = self._store.get(trial)
        if score is None:
            return None
        future: Future[Score] = Future()
        future.set_result(score)
        return future

    def _train(self, trial: Trial) -> Score:
        ((_, score),) = self._process()([trial], self._objective)  # type: ignore[arg-type]
        with self._lock:
            self._store.put(trial, score)
            self.trained += 1
        cost = f"{score.epochs} epochs in {score.train_seconds:.0f} s"
        say(f"{self.trained} trained: {trial.spec.name}, {cost}, top-1 {score.top1:.4f}")
        return score

    def _process(self) -> Processes:
        if not hasattr(self._of_thread, "process"):
            self._of_thread.process = Processes(1)
            with self._lock:
                self._processes.append(self._of_thread.process)
        process: Processes = self._of_thread.process
        return process

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()


def compare(space: SearchSpace, goal: Goal, train: Pool, efforts: Mapping[Search, Effort]) -> Found:
    """Run all searches at the same time."""

    def run(one: Search) -> Sequence[Proxy]:
        found = explore(space, goal, train, effort=efforts[one], stage=told(str(one)))
        say(f"{one}: done, best reward {max(proxy.reward for proxy in found.proxies):.4f}")
        return found.proxies

    with ThreadPoolExecutor(len(efforts)) as threads:
        return dict(zip(efforts, threads.map(run, efforts), strict=True))


def told(name: str) -> Any:
    """A `phiscale.search.coefficients.Stage` that prints a line."""

    @contextmanager
    def stage(label: str) -> Iterator[None]:
        say(f"{name}: {label}")
        yield

    return stage


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:5.0f} s] {text}", flush=True)


# -- what came out ---------------------------------------------------------------------------------


def best_so_far(proxies: Sequence[Proxy]) -> list[float]:
    """The best reward after each trial."""
    return list(accumulate((proxy.reward for proxy in proxies), max))


def medians(found: Found) -> dict[str, dict[str, Any]]:
    """Best reward of each search, and their median over the seeds of a sampler."""
    best: dict[str, dict[int, float]] = {}
    for one, proxies in found.items():
        best.setdefault(one.sampler, {})[one.seed] = best_so_far(proxies)[-1]
    summary: dict[str, dict[str, Any]] = {
        sampler: {
            "best_rewards": {str(seed): reward for seed, reward in of_seed.items()},
            "median": statistics.median(of_seed.values()),
            "lowest": min(of_seed.values()),
            "highest": max(of_seed.values()),
        }
        for sampler, of_seed in best.items()
    }
    for sampler in summary.keys() - {RANDOM}:
        if RANDOM in summary:
            summary[sampler]["beats_random"] = summary[sampler]["median"] > summary[RANDOM]["median"]
    return summary


def best_search(found: Found) -> Search:
    """Of the sampler of the highest median, the seed of the best reward."""
    summary = medians(found)
    return max(
        found,
        key=lambda one: (summary[one.sampler]["median"], summary[one.sampler]["best_rewards"][str(one.seed)]),
    )


def rewards_csv(found: Found) -> str:
    """A row per trial."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one, proxies in found.items():
        for number, (proxy, best) in enumerate(zip(proxies, best_so_far(proxies), strict=True), start=1):
            macs = int(proxy.candidate.costs["macs"])
            writer.writerow([*one, number, proxy.score.top1, macs, proxy.reward, best])
    return text.getvalue()


def draw(figure: Any, found: Found) -> None:
    """Best reward so far against trials: the median of the seeds as a line, their range as an area."""
    axes = figure.subplots()
    for sampler in dict.fromkeys(one.sampler for one in found):
        curves = [best_so_far(proxies) for one, proxies in found.items() if one.sampler == sampler]
        steps = list(zip(*curves, strict=False))
        trials, colour = range(1, len(steps) + 1), COLOURS[sampler]
        axes.fill_between(
            trials,
            list(map(min, steps)),
            list(map(max, steps)),
            step="post",
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        axes.step(trials, list(map(statistics.median, steps)), where="post", color=colour, label=sampler)
    axes.set(xlabel="networks trained", ylabel="best reward so far")
    axes.grid(alpha=0.25)
    axes.legend(title="median and range of the seeds")


def report(
    plan: BaselinePlan, efforts: Mapping[Search, Effort], found: Found, final: BaselineSearch | None
) -> dict[str, Any]:
    """Everything as plain values, with the machine; seconds are of the trainings, also of recorded ones."""
    effort = dataclasses.asdict(next(iter(efforts.values())))
    names = ("trials", "generation", "proxy_epochs", "proxy_image_size", "proxy_seed")
    scores = {
        efforts[search].proxy(one.candidate.spec).key: one.score
        for search, proxies in found.items()
        for one in proxies
    }
    return {
        "goal": {"macs": plan.goal.target, "exponent": plan.goal.exponent},
        "template": plan.space.template.to_dict(),
        "networks_of_the_space": plan.space.size,
        "trainings_by": plan.trials.objective.identity(),
        "effort": {name: effort[name] for name in names},
        "samplers": medians(found),
        "short_trainings": len(scores),
        "short_training_seconds": round(sum(score.train_seconds for score in scores.values()), 1),
        "best_search": best_search(found)._asdict(),
        "front": None if final is None else search_to_dict(final),
        "machine": str(this_machine()),
        "device": device(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def device() -> str:
    """Where the trainings run."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def write(
    folder: Path,
    plan: BaselinePlan,
    efforts: Mapping[Search, Effort],
    found: Found,
    final: BaselineSearch | None = None,
) -> None:
    """Write the table, the figure and the medians."""
    write_text(folder / "rewards.csv", rewards_csv(found))
    write_text(folder / "comparison.json", json.dumps(report(plan, efforts, found, final), indent=2) + "\n")
    save_png_and_svg(folder / "comparison", partial(draw, found=found), width=6, height=4)


# -- command line ----------------------------------------------------------------------------------


def main(
    images: Annotated[str, typer.Argument(help="As for phiscale search baseline.")],
    macs: Macs,
    out: Annotated[Path, typer.Option(help="Folder for trainings and results.")],
    template: Annotated[
        str, typer.Option(help="A name, scaled to --macs; or a JSON file.")
    ] = "efficientnet_b0",
    seeds: Annotated[int, typer.Option(help="Searches of each sampler.", min=1)] = 3,
    trials: Annotated[int, typer.Option(help="Networks that each search trains a little.", min=1)] = 40,
    generation: Annotated[int, typer.Option(help="Networks that are proposed at once.", min=2)] = 8,
    proxy_epochs: Annotated[int | None, typer.Option(help="Epochs of a short training.", min=1)] = None,
    proxy_image_size: Annotated[
        int | None, typer.Option(help="Image side of a short training.", min=8)
    ] = None,
    training_seed: Annotated[int, typer.Option(help="Seed of all short trainings.")] = 0,
    exponent: Annotated[float, typer.Option(help="w of the reward.")] = -0.07,
    image_size: Annotated[int | None, typer.Option(help="Image side of the networks.", min=8)] = None,
    recipe: Annotated[str, typer.Option(help="fast, paper or a YAML file.")] = "fast",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share of the images to compare on.")] = 0.2,
    train_images: TrainImages = None,
    finalists: Annotated[int, typer.Option(help="Networks of the front, at most.", min=1)] = 8,
    final_epochs: Annotated[int | None, typer.Option(help="Epochs of a full training.", min=1)] = None,
    final_seeds: Annotated[int, typer.Option(help="Full trainings of each; 0 leaves them out.", min=0)] = 3,
    workers: Annotated[int, typer.Option(help="Processes that train.", min=1)] = 1,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    say("scanning the images")
    plan = plan_baseline(
        images,
        limits=Budget(macs=macs),
        template=template,
        exponent=exponent,
        image_size=image_size,
        recipe=recipe,
        overrides=make_overrides(settings, {}),
        val_fraction=val_fraction,
        train_images=train_images,
        scratch=out.absolute() / SCRATCH,
    )
    efforts = {
        Search(name, seed): default_effort(
            plan,
            sampler=name,
            seed=seed,
            proxy_seed=training_seed,
            trials=trials,
            generation=generation,
            proxy_epochs=proxy_epochs,
            proxy_image_size=proxy_image_size,
            finalists=finalists,
            final_epochs=final_epochs,
            final_seeds=tuple(range(final_seeds)) or None,
        )
        for seed in range(seeds)
        for name in SAMPLERS
    }
    objective = plan.trials.objective
    with run_folder(out), TrialStore(out / TRIALS, settings=objective.identity()) as store:
        objective.prepare()
        with Pool(objective, store, workers=workers) as pool:
            found = compare(plan.space, plan.goal, pool, efforts)
            write(out, plan, efforts, found)
            for name, summary in medians(found).items():
                say(f"{name}: median of the best rewards {summary['median']:.4f}")
            if final_seeds:
                best = best_search(found)
                final = search_baseline(
                    plan.space, plan.goal, pool, effort=efforts[best], stage=told(str(best))
                )
                (out / FRONT).mkdir(exist_ok=True)
                write_results(final, out / FRONT)
                write(out, plan, efforts, found, final)
                say(f"a finalist dominates the template: {final.dominates_template}")
    say(f"{pool.trained} trained in this run; results in {out}")


if __name__ == "__main__":
    # The threads wait for processes, which end with this one; what has been trained is recorded.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        typer.run(main)
    except PhiscaleError as error:
        sys.exit(str(error))
