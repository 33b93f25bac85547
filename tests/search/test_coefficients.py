from __future__ import annotations

import csv
import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from killing import log_lines, recorded, start, wait_for_the_end_of, wait_until_ready
from made_up import SMALL, Hill

import phiscale as ps
from phiscale.errors import BudgetError, SpecError
from phiscale.evaluation.plots import new_figure
from phiscale.scaling.compound import CompoundRule, compound_scale, get_rule
from phiscale.search.coefficients import (
    CoefficientPlan,
    CoefficientResult,
    plan_coefficients,
    search_coefficients,
)
from phiscale.search.coefficients_report import result_to_dict, write_result
from phiscale.search.objective import Objective
from phiscale.search.store import TrialStore
from phiscale.search.ternary import draw_ternary, shares

PLAN = plan_coefficients(SMALL, epochs=9, step=0.1, seeds=(0, 1, 2))


def search(folder: Path, plan: CoefficientPlan, objective: Objective, workers: int = 1) -> CoefficientResult:
    with TrialStore(folder / "trials.db") as store:
        return search_coefficients(plan, objective, store, workers=workers)


@pytest.mark.parametrize("index", range(0, len(PLAN.candidates), 3))
def test_a_known_optimum_is_found(tmp_path: Path, index: int) -> None:
    best = PLAN.candidates[index]
    result = search(tmp_path, PLAN, Hill(best.spec))
    assert result.rule == best.rule
    assert result.winner.candidate.spec == best.spec
    assert result.winner.epochs == 9
    assert result.winner.top1.count == 3
    assert result.winner.confirmed is not None
    assert result.winner.confirmed.count == 5
    assert (result.against_paper is None) == best.is_paper


def test_the_plan_counts_what_is_trained(tmp_path: Path) -> None:
    trained: list[int] = []

    class Counting(Hill):
        def __call__(self, spec, **how):  # type: ignore[no-untyped-def]
            trained.append(how["epochs"])
            return super().__call__(spec, **how)

    result = search(tmp_path, PLAN, Counting(compound_scale(SMALL, phi=1, rule=get_rule("depth"))))
    expected = [epochs for count, epochs in PLAN.trainings() for _ in range(count)]
    assert sorted(trained) == sorted(expected)
    assert [ranked.rung for ranked in result.ranking] == sorted(
        (ranked.rung for ranked in result.ranking), reverse=True
    )
    assert {ranked.candidate for ranked in result.ranking} == set(PLAN.first_rung)


def test_seeds_that_confirm_did_not_choose() -> None:
    assert PLAN.seeds == (0, 1, 2)
    assert PLAN.confirm_seeds == (3, 4, 5, 6, 7)


def test_what_misses_the_cost_is_dropped_and_the_papers_is_kept() -> None:
    b0 = ps.get_spec("efficientnet_b0")
    plan = plan_coefficients(b0, epochs=9, cost_tolerance=0.1)
    assert all(abs(candidate.macs_growth / 2 - 1) <= 0.1 for candidate in plan.candidates)
    assert all(abs(candidate.macs_growth / 2 - 1) > 0.1 for candidate in plan.dropped)
    # B0's single layers become two at any depth factor, so the paper's rule costs 2.57 times B0.
    assert plan.paper not in plan.candidates
    assert plan.paper in plan.first_rung
    assert plan.paper.rule == get_rule("paper")
    wider = plan_coefficients(b0, epochs=9, cost_tolerance=0.3)
    assert wider.paper in wider.candidates


def test_a_reference_off_the_target_cannot_win(tmp_path: Path) -> None:
    plan = replace(PLAN, candidates=tuple(c for c in PLAN.candidates if not c.is_paper))
    result = search(tmp_path, plan, Hill(plan.paper.spec))
    assert not result.winner.candidate.is_paper
    (paper,) = (ranked for ranked in result.ranking if ranked.candidate.is_paper)
    assert paper.rung == 1
    assert paper.confirmed is not None
    assert result.against_paper is not None
    assert result.against_paper.high is not None
    assert result.against_paper.high < 0  # and that it would have been better is said


def test_no_candidate_at_all() -> None:
    with pytest.raises(BudgetError, match=r"the nearest costs \d\.\d\d times; raise cost_tolerance"):
        plan_coefficients(SMALL, epochs=9, step=1, tolerance=0.01, cost_tolerance=0.01)


@pytest.mark.parametrize("seeds", [(), (0, 0), (-1,)])
def test_seeds_that_are_none(seeds: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="different numbers"):
        plan_coefficients(SMALL, epochs=9, seeds=seeds)


def test_workers_change_nothing(tmp_path: Path) -> None:
    hill = Hill(PLAN.candidates[0].spec, spread=0.05)
    one = search(tmp_path / "one", PLAN, hill)
    two = search(tmp_path / "two", PLAN, hill, workers=2)
    assert result_to_dict(one) == result_to_dict(two)


def test_a_finer_grid_trains_only_what_is_new(tmp_path: Path) -> None:
    hill = Hill(PLAN.candidates[0].spec)
    search(tmp_path, PLAN, hill)
    with TrialStore(tmp_path / "trials.db") as store:
        before = len(store)
    fine = plan_coefficients(SMALL, epochs=9, step=0.05, seeds=(0, 1, 2))
    shared = {replace(c.spec, name="x") for c in PLAN.candidates}
    shared &= {replace(c.spec, name="x") for c in fine.candidates}
    search(tmp_path, fine, hill)
    with TrialStore(tmp_path / "trials.db") as store:
        new = len(store) - before
    assert new <= sum(count for count, _ in fine.trainings()) - 3 * len(shared)


def test_what_is_written(tmp_path: Path) -> None:
    result = search(tmp_path, PLAN, Hill(PLAN.candidates[0].spec))
    write_result(result, tmp_path)
    assert get_rule(tmp_path / "rule.json") == result.rule
    with (tmp_path / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(PLAN.first_rung)
    winner = next(row for row in rows if row["winner"] == "True")
    assert float(winner["alpha"]) == result.rule.alpha
    assert float(winner["top1_low"]) < float(winner["top1"]) < float(winner["top1_high"])
    assert int(winner["macs"]) == ps.complexity(result.winner.candidate.spec).macs
    stored = json.loads((tmp_path / "result.json").read_text())
    assert ps.NetworkSpec.from_dict(stored["winner"]) == result.winner.candidate.spec


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("depth", (1, 0, 0)),
        ("width", (0, 1, 0)),
        ("resolution", (0, 0, 1)),
        ("uniform", (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_shares(name: str, expected: tuple[float, float, float]) -> None:
    assert shares(get_rule(name)) == pytest.approx(expected)


def test_the_ternary_plot_has_every_rule(tmp_path: Path) -> None:
    result = search(tmp_path, PLAN, Hill(PLAN.candidates[2].spec))
    figure = new_figure(6, 5)
    draw_ternary(figure, result)
    figure.savefig(tmp_path / "ternary.svg")
    axis = figure.axes[0]
    colours = [item for item in axis.collections if item.get_array() is not None]
    (dots,) = colours
    points = sum(len(candidate.rules) for candidate in PLAN.first_rung)
    values = dots.get_array()
    assert values is not None
    assert np.asarray(dots.get_offsets()).shape == (points, 2)
    assert len(values) == points
    top1 = [100 * ranked.first_top1.mean for ranked in result.ranking]
    assert (values.min(), values.max()) == pytest.approx((min(top1), max(top1)))
    height = 3**0.5 / 2
    for x, y in np.asarray(dots.get_offsets(), dtype=float):
        assert -1e-9 <= y <= height * (1 - 2 * abs(x - 0.5)) + 1e-9


# -- kill -9 --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        (1, 3),
        (2, 2),
        pytest.param(1, 10, marks=pytest.mark.slow),
        pytest.param(2, 10, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(tmp_path: Path, workers: int, kills: int) -> None:
    rng = random.Random(workers * 100 + kills)
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    finished = 0
    for _ in range(kills):
        known, lines = recorded(broken), len(log_lines(broken / "log"))
        driver = start(broken, str(workers))
        wait_until_ready(driver, broken)
        time.sleep(rng.uniform(0.0, 0.8))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        begun = log_lines(broken / "log")[lines:]
        for _, pid in begun:
            wait_for_the_end_of(pid)
        assert not known & {key for key, _ in begun}  # what was recorded is not trained again
        finished += (broken / "result.json").exists()
    assert start(broken, str(workers)).wait() == 0
    assert start(unbroken, "1").wait() == 0
    assert len(recorded(unbroken)) == 12
    assert recorded(broken) == recorded(unbroken)
    for name in ("result.json", "ranking.csv", "rule.json"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes()
    assert finished < kills  # else nothing was broken off
    assert get_rule(broken / "rule.json") == CompoundRule(alpha=1.4, beta=1.1, gamma=1.1)
