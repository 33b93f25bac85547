"""The search for a baseline, with made-up accuracies whose optimum is known."""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hidden_optimum import SPACE, TEMPLATE, HiddenOptimum, Recorder, goal
from matplotlib.figure import Figure

from phiscale.errors import BudgetError, SpecError
from phiscale.families import get_spec
from phiscale.scaling.budget import Budget
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import compound_scale
from phiscale.search.baseline import BaselineSearch, Effort, explore, search_baseline
from phiscale.search.baseline_report import BASELINE, draw_search, search_to_dict, write_search
from phiscale.search.objective import Score, Trial
from phiscale.search.pareto import dominates
from phiscale.search.proposals import SAMPLERS, SamplerName
from phiscale.search.reward import Goal
from phiscale.search.runner import run_trials
from phiscale.search.space import SearchSpace, StageSpace
from phiscale.search.store import TrialStore
from phiscale.spec import NetworkSpec

LIMITED = goal(0.7)  # so that the template and much else is beyond it
SMALL = Effort(trials=24, proxy_epochs=2, proxy_image_size=14, finalists=3)


def search(
    sampler: SamplerName, seed: int, *, one: Goal = LIMITED, trials: int = 80
) -> tuple[BaselineSearch, Recorder]:
    train = Recorder(HiddenOptimum(most_macs=one.target))
    effort = replace(SMALL, sampler=sampler, seed=seed, trials=trials)
    return search_baseline(SPACE, one, train, effort=effort), train


# -- what must hold --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_beyond_a_limit_is_never_trained(sampler: SamplerName) -> None:
    found, train = search(sampler, 0)
    assert found.rejected > 0
    sizes = [replace(trial.spec, image_size=TEMPLATE.image_size) for trial in train.asked]
    assert max(complexity(spec).macs for spec in sizes) <= LIMITED.target
    assert len(found.proxies) == 80


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_network_is_trained_twice(sampler: SamplerName) -> None:
    found, train = search(sampler, 1)
    specs = [replace(proxy.candidate.spec, name="same") for proxy in found.proxies]
    assert len(set(specs)) == len(specs)
    assert train.objective.calls == len(train.scores) == len({trial.key for trial in train.asked})


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_samplers_beat_random_search_and_approach_the_optimum(sampler: SamplerName) -> None:
    def best_reward(name: SamplerName, seed: int) -> float:
        return max(proxy.reward for proxy in search(name, seed, trials=160)[0].proxies)

    medians = {
        name: statistics.median(best_reward(name, seed) for seed in range(3)) for name in (sampler, "random")
    }
    objective = HiddenOptimum(most_macs=LIMITED.target)
    optimum = LIMITED.reward(objective.HIGHEST, complexity(objective.best).macs)
    assert medians[sampler] > medians["random"]
    # At least half of the way from what random search finds to the optimum.
    assert optimum - medians[sampler] < 0.5 * (optimum - medians["random"])


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_samplers_learn_where_to_skip(sampler: SamplerName) -> None:
    def of_the_last(name: SamplerName, seed: int) -> float:
        train = Recorder(HiddenOptimum(most_macs=LIMITED.target, fields=("block", "skip")))
        effort = replace(SMALL, sampler=name, seed=seed, trials=80)
        proxies = explore(SPACE, LIMITED, train, effort=effort).proxies
        return statistics.mean(proxy.score.top1 for proxy in proxies[40:])

    learnt, by_chance = (
        statistics.median(of_the_last(name, seed) for seed in range(3)) for name in (sampler, "random")
    )
    # Of what random search lacks of the optimum, at least a third is gone.
    assert HiddenOptimum.HIGHEST - learnt < 2 / 3 * (HiddenOptimum.HIGHEST - by_chance)


def test_the_hidden_optimum_has_the_right_skips() -> None:
    objective = HiddenOptimum(most_macs=LIMITED.target)
    assert objective(objective.best, seed=0).top1 == HiddenOptimum.HIGHEST
    choosing = {block.stage_index for block in objective.best.blocks() if block.fits_skip}
    stages = objective.best.stages
    flipped = [
        replace(
            objective.best,
            stages=(
                *stages[:index],
                replace(stages[index], skip=not stages[index].skip),
                *stages[index + 1 :],
            ),
        )
        for index in choosing
        if stages[index].block == "mbconv"
    ]
    assert flipped
    assert all(objective(spec, seed=0).top1 < HiddenOptimum.HIGHEST for spec in flipped)


def test_searches_share_trainings_where_the_proxies_seed_is_given() -> None:
    shared = Recorder(HiddenOptimum(most_macs=LIMITED.target))
    one, other = (replace(SMALL, seed=seed, proxy_seed=7, sampler="random", trials=8) for seed in (0, 1))
    spec = SPACE.smallest()
    assert one.proxy(spec) == other.proxy(spec) == replace(SMALL.proxy(spec), seed=7)
    first = explore(SPACE, LIMITED, shared, effort=one)
    second = explore(SPACE, LIMITED, shared, effort=other)
    assert {trial.seed for trial in shared.asked} == {7}
    # The sampler's seed is another one, so the proposals are.
    assert [p.candidate.spec for p in first.proxies] != [p.candidate.spec for p in second.proxies]
    # The second half of a search finds the first half's trainings, and adds to them.
    calls = shared.objective.calls
    found = search_baseline(SPACE, LIMITED, shared, effort=one)
    assert found.proxies == first.proxies
    assert shared.objective.calls - calls == len(found.finalists)


def test_of_a_small_space_every_network_is_tried() -> None:
    stage = StageSpace(
        kernel_size=(3, 5), expand_ratio=(1, 6), se_ratio=(0.25,), num_layers=(1,), out_channels=(8,)
    )
    space = SearchSpace(template=replace(TEMPLATE, stages=TEMPLATE.stages[:1]), stages=(stage,))
    assert space.size == 6
    train = Recorder(HiddenOptimum(space, most_macs=2 * complexity(space.template).macs))
    found = search_baseline(space, goal(2.0), train, effort=replace(SMALL, trials=50))
    assert len(found.proxies) == 6
    best = max(found.proxies, key=lambda proxy: proxy.score.top1)
    assert best.score.top1 == HiddenOptimum.HIGHEST


def test_finalists_are_the_front_and_the_template() -> None:
    labels: list[str] = []

    @contextmanager
    def stage(label: str) -> Iterator[None]:
        labels.append(label)
        yield

    train = Recorder(HiddenOptimum(most_macs=goal(1.0).target))
    found = search_baseline(SPACE, goal(1.0), train, effort=replace(SMALL, trials=20), stage=stage)
    full_label = f"finalists: {len(found.finalists)} networks in full"
    assert labels == [f"candidates up to {done} of 20" for done in (8, 16, 20)] + [full_label]
    places = [(proxy.cost, proxy.score.top1) for proxy in found.proxies]
    assert len(found.finalists) <= SMALL.finalists + 1
    assert found.template is not None
    assert replace(found.template.spec, name=TEMPLATE.name) == TEMPLATE
    for one in found.finalists:
        if not one.is_template:
            # Full and short trainings give the same here, so a place of the one is a place of the other.
            assert not any(dominates(other, (one.cost, one.top1.mean)) for other in places)
    full = train.asked[len(found.proxies) :]
    assert {trial.epochs for trial in full} == {None}
    assert {trial.spec.image_size for trial in full} == {TEMPLATE.image_size}
    proxies = train.asked[: len(found.proxies)]
    assert {(trial.epochs, trial.spec.image_size) for trial in proxies} == {(2, (14, 14))}
    assert found.best.reward == max(one.reward for one in found.finalists)
    assert found.dominates_template is any(
        dominates((one.cost, one.top1.mean), (found.template.cost, found.template.top1.mean))
        for one in found.finalists
    )


def test_a_template_beyond_the_limits_is_left_out() -> None:
    found, _ = search("nsga2", 0, trials=8)
    assert found.template is None
    assert found.dominates_template is None


def test_every_seed_of_the_final_counts() -> None:
    class Noisy(HiddenOptimum):
        def __call__(
            self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: object = None
        ) -> Score:
            score = super().__call__(spec, seed=seed, epochs=epochs)
            return replace(score, top1=score.top1 - 0.01 * seed)

    train = Recorder(Noisy(most_macs=LIMITED.target))
    found = search_baseline(SPACE, LIMITED, train, effort=replace(SMALL, final_seeds=(0, 1, 2)))
    for one in found.finalists:
        assert len(one.scores) == one.top1.count == 3
        assert one.top1.mean == pytest.approx(one.scores[0].top1 - 0.01)
        assert one.reward == LIMITED.reward(one.top1.mean, one.cost)


# -- limits ----------------------------------------------------------------------------------------


def test_measured_latency_can_be_the_cost() -> None:
    measured: list[NetworkSpec] = []

    def measure(spec: NetworkSpec) -> float:
        measured.append(spec)
        return complexity(spec).activations / 1e4

    most = 0.7 * complexity(TEMPLATE).macs
    one = Goal(
        limits=Budget(macs=most, latency_ms=0.7 * complexity(TEMPLATE).activations / 1e4),
        cost="latency_ms",
        measure=measure,
    )
    train = Recorder(HiddenOptimum(most_macs=most))
    found = search_baseline(SPACE, one, train, effort=SMALL)
    for proxy in found.proxies:
        assert proxy.cost == complexity(proxy.candidate.spec).activations / 1e4 <= one.target
    assert max(complexity(spec).macs for spec in measured) <= most


def never(trials: object, *, progress: object = None) -> dict[str, Score]:
    raise AssertionError("nothing is to be trained")


def test_an_impossible_limit_is_told_at_once() -> None:
    with pytest.raises(BudgetError, match="the smallest network of the space needs macs="):
        search_baseline(SPACE, goal(0.001), never, effort=SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"trials": 0},
        {"generation": 1},
        {"finalists": 0},
        {"proxy_epochs": 0},
        {"final_seeds": ()},
        {"final_seeds": (1, 1)},
    ],
)
def test_efforts_that_are_none(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=next(iter(wrong))):
        Effort(**wrong)  # type: ignore[arg-type]


def test_proxies_must_be_as_large_as_the_stride() -> None:
    with pytest.raises(SpecError, match="divides each side by 8; give at least 8"):
        search_baseline(SPACE, LIMITED, never, effort=replace(SMALL, proxy_image_size=7))


def test_an_unknown_sampler() -> None:
    with pytest.raises(SpecError, match="sampler must be one of nsga2, tpe, random"):
        search("nsga3", 0)  # type: ignore[arg-type]


# -- files -----------------------------------------------------------------------------------------


def test_what_is_written_is_a_baseline_and_the_figures(tmp_path: Path) -> None:
    found, _ = search("nsga2", 0, one=goal(1.0))
    write_search(found, tmp_path, name="mine")
    spec = get_spec(tmp_path / BASELINE)
    assert spec == replace(found.best.spec, name="mine")
    assert complexity(compound_scale(spec, phi=1)).macs > complexity(spec).macs
    with (tmp_path / "candidates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["training"] for row in rows].count("proxy") == len(found.proxies)
    for row in rows:
        written = NetworkSpec.from_json(row["spec"])
        assert int(row["macs"]) == complexity(written).macs
        assert float(row["reward"]) == found.goal.reward(float(row["top1"]), int(row["macs"]))
    assert json.loads((tmp_path / "search.json").read_text()) == json.loads(json.dumps(search_to_dict(found)))
    figure = Figure()
    draw_search(figure, found)
    assert [axes.get_title() for axes in figure.axes] == [
        f"short trainings ({len(found.proxies)})",
        f"full trainings ({len(found.finalists)})",
    ]


# -- begun again -----------------------------------------------------------------------------------


def stored(path: Path, *, workers: int = 1) -> BaselineSearch:
    objective = HiddenOptimum(most_macs=LIMITED.target)
    with TrialStore(path) as store:
        train = partial(run_trials, objective=objective, store=store, workers=workers)
        return search_baseline(SPACE, LIMITED, train, effort=SMALL)


def test_workers_change_nothing(tmp_path: Path) -> None:
    assert search_to_dict(stored(tmp_path / "one.db")) == search_to_dict(
        stored(tmp_path / "two.db", workers=2)
    )


def test_a_search_that_was_broken_off_trains_the_rest_and_ends_as_an_unbroken_one() -> None:
    unbroken, whole = search("tpe", 3, trials=24)
    for stop_after in (0, 1, 9, 23, 25):
        train = Recorder(HiddenOptimum(most_macs=LIMITED.target))
        train.scores = dict(list(whole.scores.items())[:stop_after])
        again = search_baseline(SPACE, LIMITED, train, effort=replace(SMALL, sampler="tpe", seed=3))
        assert search_to_dict(again) == search_to_dict(unbroken)
        assert train.objective.calls == len(whole.scores) - stop_after


KILLED = """
import os, sys, time
from functools import partial
from pathlib import Path
from hidden_optimum import SPACE, HiddenOptimum, goal
from phiscale.search.baseline import Effort, search_baseline
from phiscale.search.runner import run_trials
from phiscale.search.store import TrialStore

class Slow(HiddenOptimum):
    def __call__(self, spec, **settings):
        with open(sys.argv[2], "a") as log:
            log.write("x")
        time.sleep(0.03)
        return super().__call__(spec, **settings)

one = goal(0.7)
with TrialStore(sys.argv[1]) as store:
    train = partial(run_trials, objective=Slow(most_macs=one.target), store=store)
    effort = Effort(trials=24, proxy_epochs=2, proxy_image_size=14, finalists=3)
    search_baseline(SPACE, one, train, effort=effort)
"""


def test_killed_three_times_it_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    store, log = tmp_path / "trials.db", tmp_path / "log"
    log.touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    for more in (3, 8, 6):
        goal_length = len(log.read_text()) + more
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(store), str(log)], env=environment)
        while len(log.read_text()) < goal_length and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    with TrialStore(store) as recorded:
        before = len(recorded)
    assert 0 < before < 24
    assert search_to_dict(stored(store)) == search_to_dict(stored(tmp_path / "unbroken.db"))
    with TrialStore(store) as recorded, TrialStore(tmp_path / "unbroken.db") as whole:
        # A training that was killed in the middle ran again; none that was recorded did.
        assert len(recorded.study.trials) == len(whole) == len(recorded)


def test_proxies_are_told_apart_from_full_trainings() -> None:
    spec = SPACE.smallest()
    assert SMALL.proxy(spec) == Trial(spec=replace(spec, image_size=(14, 14)), seed=0, epochs=2)
    assert SMALL.full(spec) == [Trial(spec=spec, seed=0)]
