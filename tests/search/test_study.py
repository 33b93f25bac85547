from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killable_study import make_plan
from made_up import SMALL, Hill, Slow
from made_up_study import Saturating

from phiscale.errors import BudgetError, SpecError
from phiscale.families import get_spec
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES, CompoundRule, scale
from phiscale.search.objective import Trial
from phiscale.search.statistics import confidence_interval
from phiscale.search.store import TrialStore
from phiscale.search.study import (
    COMPOUND,
    FAMILY_BASELINES,
    StudyPlan,
    StudyResult,
    family_baseline,
    missing_arms,
    plan_study,
    run_study,
)
from phiscale.search.study_files import arm_rows, result_to_dict, training_rows, write_tables
from phiscale.search.study_statistics import Spread, detectable_difference, difference, pool
from phiscale.spec import NetworkSpec

KILLS = 3
ARMS = ["depth", "width", "resolution", COMPOUND, "dWr"]


@pytest.fixture(scope="module")
def whole() -> StudyPlan:
    return plan_study(SMALL)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    with TrialStore(tmp_path_factory.mktemp("study") / "trials.db") as store:
        return run_study(
            plan_study(SMALL, tables=["table7"]), Saturating(SMALL), store, seeds=(0, 1, 2, 3), epochs=10
        )


# ------------------------------------------------------------------------------------------- plan


def test_every_comparison_is_within_three_percent(whole: StudyPlan) -> None:
    assert {part.kind for part in whole.parts} == {"levels", "widths", "families"}
    for part in whole.parts:
        costs = [complexity(arm.spec).macs for arm in part.comparison.arms]
        assert len(costs) > 1
        assert max(costs) <= 1.03 * min(costs)


def test_table7_is_the_dearest_level_of_the_figures(whole: StudyPlan) -> None:
    (only,) = plan_study(SMALL, tables=["table7"]).parts
    assert only == whole.of_kind("levels")[-1]
    assert only.growth == 4.0
    growths = [part.growth for part in whole.of_kind("levels")]
    assert growths == [pytest.approx(4.0**exponent) for exponent in (0.5, 0.75, 1.0)]


def test_figure3_alone_needs_no_compound_arm() -> None:
    plan = plan_study(SMALL, tables=["figure3"], levels=[2.0, 4.0])
    assert [arm.name for part in plan.parts for arm in part.comparison.arms] == 2 * ARMS[:3]


def test_each_network_is_trained_once_and_baselines_first(whole: StudyPlan) -> None:
    keys = [Trial(spec=spec, seed=0).key for spec in whole.networks]
    assert len(set(keys)) == len(keys)
    assert whole.networks[0] == SMALL
    shown = {Trial(spec=arm.spec, seed=0).key for part in whole.parts for arm in part.comparison.arms}
    assert shown < set(keys)
    seeds = [trial.seed for trial in whole.trials([5, 6], 3)]
    assert seeds == [5] * len(keys) + [6] * len(keys)


def test_figure4_sweeps_width_at_the_papers_depths_and_resolutions(whole: StudyPlan) -> None:
    for part in whole.of_kind("widths"):
        for arm in part.comparison.arms:
            depth, resolution = (float(text.partition("=")[2]) for text in arm.name.split(", "))
            start = scale(SMALL, depth=depth, resolution=resolution)
            assert arm.spec.num_blocks == start.num_blocks
            if arm.fine is None:
                assert arm.spec.image_size == start.image_size


def test_a_budget_is_a_growth_or_multiply_adds() -> None:
    macs = complexity(SMALL).macs
    by_growth = plan_study(SMALL, tables=["table7"], growth=3.0)
    assert plan_study(SMALL, tables=["table7"], macs=3.0 * macs) == by_growth
    assert plan_study(SMALL, tables=["table7"], levels=[2.0, 3.0]) == by_growth
    assert by_growth.parts[0].counted_growth == pytest.approx(3.0, rel=0.2)


@pytest.mark.parametrize(
    "arguments", [{"growth": 1.0}, {"growth": 0.5}, {"macs": 1e5}, {"levels": [0.5, 4.0]}]
)
def test_a_study_scales_up(arguments: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="must be more than the baseline's"):
        plan_study(SMALL, **arguments)


def test_one_budget_is_enough() -> None:
    with pytest.raises(BudgetError, match="one of growth, macs and levels"):
        plan_study(SMALL, growth=2.0, macs=1e7)


@pytest.mark.parametrize("tables", [["table8"], []])
def test_a_table_must_be_known(tables: list[str]) -> None:
    with pytest.raises(SpecError, match="known: table7, figure3"):
        plan_study(SMALL, tables=tables)


def test_the_compound_arm_follows_the_rule() -> None:
    b0 = get_spec("efficientnet_b0")
    rule = CompoundRule(alpha=1.1, beta=1.15, gamma=1.2)
    (part,) = plan_study(b0, tables=["table7"], rule=rule).parts
    arm = part.comparison.arm(COMPOUND)
    assert arm is not None
    assert arm.fine is None
    # All three factors are powers of the rule's by one φ, as far as rounding to a network lets one see.
    factors = (arm.scaling.depth, arm.scaling.width, arm.scaling.resolution)
    phis = [np.log(factor) / np.log(base) for factor, base in zip(factors, (1.1, 1.15, 1.2), strict=True)]
    assert max(phis) - min(phis) < 0.02


def test_what_cannot_be_compared_is_said() -> None:
    # The stages of a network as narrow as this double at once.
    narrow = replace(
        SMALL,
        stem=replace(SMALL.stem, out_channels=8),
        stages=tuple(replace(stage, out_channels=8) for stage in SMALL.stages),
        head=None,
    )
    plan = plan_study(narrow, tables=["table7", "figure8"])
    named = {arm.name for part in plan.parts for arm in part.comparison.arms}
    assert missing_arms(plan)
    for part in plan.parts:
        assert {arm.name for arm in part.comparison.arms} | set(part.comparison.missing) == set(ARMS)
    assert named <= set(ARMS)


# --------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("name", FAMILY_BASELINES)
def test_a_family_is_made_to_fit_the_study(name: str) -> None:
    published = get_spec(name)
    fitted = family_baseline(published, SMALL)
    assert complexity(fitted).macs <= complexity(SMALL).macs
    assert (fitted.image_size, fitted.num_classes, fitted.in_channels) == ((28, 28), 10, 1)
    assert [stage.num_layers for stage in fitted.stages] == [stage.num_layers for stage in published.stages]
    assert min(fitted.image_size) // fitted.output_stride >= 2
    full = family_baseline(published, SMALL, full=True)
    assert [stage.out_channels for stage in full.stages] == [stage.out_channels for stage in published.stages]


def test_a_family_that_is_small_enough_stays() -> None:
    b0, v2 = get_spec("efficientnet_b0"), get_spec("mobilenet_v2")
    assert family_baseline(v2, b0) == v2


def test_a_family_that_cannot_be_small_enough_is_left_out_with_the_reason() -> None:
    tiny = replace(SMALL, stages=SMALL.stages[:1], head=None, image_size=(8, 8))
    with pytest.raises(BudgetError, match="resnet50 cannot be made as small as small"):
        family_baseline(get_spec("resnet50"), tiny)
    plan = plan_study(SMALL, tables=["table7", "table3"], families=["mobilenet_v1"])
    assert len(plan.of_kind("families")) == 1


# -------------------------------------------------------------------------------------------- run


def test_intervals_and_differences_are_those_of_the_scores(result: StudyResult) -> None:
    (part,) = result.plan.parts
    analysis = result.analyse(part.comparison)
    values = {arm.name: result.of(arm.spec).values for arm in part.comparison.arms}
    assert set(analysis.against) == set(values) - {COMPOUND}
    deviations = [value - np.mean(own) for own in values.values() for value in own]
    std = np.sqrt(np.sum(np.square(deviations)) / (len(deviations) - len(values)))
    assert analysis.spread is not None
    assert analysis.spread.std == pytest.approx(std)
    for name, one in analysis.against.items():
        assert one.mean == pytest.approx(np.mean(values[name]) - np.mean(values[COMPOUND]))
    rows = {row["arm"]: row for row in arm_rows(result)}
    assert list(rows) == ["baseline", *values]
    for name, own in values.items():
        interval = confidence_interval(own)
        assert (rows[name]["top1"], rows[name]["top1_low"]) == (interval.mean, interval.low)


def test_one_seed_gives_no_interval(tmp_path: Path) -> None:
    plan = plan_study(SMALL, tables=["table7"])
    with TrialStore(tmp_path / "trials.db") as store:
        result = run_study(plan, Saturating(SMALL), store, seeds=[0])
    (part,) = plan.parts
    analysis = result.analyse(part.comparison)
    assert (analysis.spread, analysis.detectable) == (None, None)
    assert all(one.low is None for one in analysis.against.values())
    assert all(row["top1_low"] is None for row in arm_rows(result))


def test_equal_seeds_do_not_promise_to_show_everything(tmp_path: Path) -> None:
    plan = plan_study(SMALL, tables=["table7"])
    with TrialStore(tmp_path / "trials.db") as store:
        result = run_study(plan, Saturating(SMALL, spread=0.0), store, seeds=[0, 1])
    analysis = result.analyse(plan.parts[0].comparison)
    assert analysis.detectable is None
    assert all(one.low is None for one in analysis.against.values())


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_are_given_once(seeds: list[int], tmp_path: Path) -> None:
    with TrialStore(tmp_path / "trials.db") as store, pytest.raises(ValueError, match="each once"):
        run_study(make_plan(), Saturating(SMALL), store, seeds=seeds)


def test_a_second_run_trains_nothing(tmp_path: Path) -> None:
    plan, log = make_plan(), tmp_path / "log"
    with TrialStore(tmp_path / "trials.db") as store:
        first = run_study(plan, Slow(Hill(SMALL), log), store, seeds=(0, 1), epochs=2)
    trained = log.read_text()
    with TrialStore(tmp_path / "trials.db") as store:
        assert run_study(plan, Slow(Hill(SMALL), log), store, seeds=(0, 1), epochs=2) == first
        more = run_study(plan, Slow(Hill(SMALL), log), store, seeds=(0, 1, 2), epochs=2)
    assert log.read_text().startswith(trained)
    assert len(log.read_text().splitlines()) == 3 * len(plan.networks)
    assert all(one.scores[:2] == first.measured[key].scores for key, one in more.measured.items())


def test_killed_at_random_moments_it_comes_to_the_same(tmp_path: Path) -> None:
    plan, whole, broken = make_plan(), tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert start(whole).wait() == 0
    choose = random.Random(0)
    for _ in range(KILLS):
        (broken / "ready").unlink(missing_ok=True)
        process = start(broken)
        while not (broken / "ready").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(choose.uniform(0.0, 0.6))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert start(broken).wait() == 0
    for name in ("arms.csv", "trainings.csv", "study.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    begun = Counter(line.split()[0] for line in (broken / "log").read_text().splitlines())
    assert len(begun) == 2 * len(plan.networks)
    # What a kill interrupted was begun again, once for each kill at most; nothing else was.
    assert sum(begun.values()) - len(begun) <= KILLS


def start(folder: Path) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("killable_study.py")
    return subprocess.Popen([sys.executable, str(script), str(folder), "1"])


# ------------------------------------------------------------------------------------------ files


def test_tables_hold_every_training(result: StudyResult, tmp_path: Path) -> None:
    write_tables(result, tmp_path)
    with (tmp_path / "trainings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result.plan.networks) * 4 == len(training_rows(result))
    by_name = {spec.name: spec for spec in result.plan.networks}
    for row in rows:
        spec = by_name[row["network"]]
        assert int(row["macs"]) == complexity(spec).macs
        assert float(row["top1"]) == result.of(spec).values[int(row["seed"])]
    stored = json.loads((tmp_path / "study.json").read_text())
    assert stored == json.loads(json.dumps(result_to_dict(result)))
    networks = {NetworkSpec.read(path) for path in (tmp_path / "networks").iterdir()}
    assert networks == set(result.plan.networks)


def test_a_name_that_is_no_file_name_stays_within_the_folder(tmp_path: Path) -> None:
    plan = plan_study(replace(SMALL, name="../mine/x"), tables=["table7"])
    with TrialStore(tmp_path / "trials.db") as store:
        result = run_study(plan, Saturating(SMALL), store, seeds=[0])
    (tmp_path / "out").mkdir()
    write_tables(result, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"trials.db", "out"}
    assert len(list((tmp_path / "out" / "networks").iterdir())) == len(plan.networks)


# ------------------------------------------------------------------------------------- statistics


def test_pooled_difference_is_the_t_test_of_two_groups() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.8, 0.01, 5).tolist(), rng.normal(0.79, 0.01, 5).tolist()
    spread = pool([first, second])
    found = difference(first, second, spread)
    wanted = stats.ttest_ind(first, second).confidence_interval(0.95)
    assert found.low == pytest.approx(wanted.low)
    assert found.high == pytest.approx(wanted.high)


def test_what_is_called_detectable_is_detected_in_four_of_five_studies() -> None:
    rng, arms, seeds, std = np.random.default_rng(1), 5, 5, 0.01
    effect = detectable_difference(Spread(std=std, degrees=arms * (seeds - 1)), seeds)
    shown = 0
    for _ in range(2000):
        values = rng.normal(0.8, std, (arms, seeds))
        values[0] += effect
        interval = difference(values[0].tolist(), values[1].tolist(), pool(values.tolist()))
        assert interval.low is not None
        shown += interval.low > 0
    assert shown / 2000 == pytest.approx(0.8, abs=0.03)


def test_more_seeds_detect_less() -> None:
    few, many = (detectable_difference(Spread(std=0.01, degrees=2 * n - 2), n) for n in (3, 10))
    assert many < few


def test_nothing_is_known_of_the_spread_of_single_values() -> None:
    assert pool([[0.5], [0.7]]) is None
    assert pool([[0.5, 0.5], [0.7]]) == Spread(std=0.0, degrees=1)


def test_the_papers_rule_is_the_default() -> None:
    assert make_plan().rule == RULES["paper"]
