"""The comparison of samplers: several searches at once on one pool, with the results of each alone."""

from __future__ import annotations

import csv
import io
import runpy
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hidden_optimum import SPACE, HiddenOptimum, Recorder, goal
from made_up import OneFails
from matplotlib.figure import Figure

from phiscale.search.baseline import Effort, Proxy, explore
from phiscale.search.proposals import SAMPLERS
from phiscale.search.store import TrialStore

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "compare_samplers.py"))
LIMITED = goal(0.7)
EFFORTS = {
    TOOL["Search"](sampler, seed): Effort(
        sampler=sampler, seed=seed, proxy_seed=5, trials=12, generation=4, proxy_epochs=2, proxy_image_size=14
    )
    for seed in (0, 1)
    for sampler in SAMPLERS
}
Found = dict[tuple[str, int], tuple[Proxy, ...]]


@pytest.fixture(scope="module")
def alone() -> Found:
    """Every search by itself."""
    train = Recorder(HiddenOptimum(most_macs=LIMITED.target))
    return {one: explore(SPACE, LIMITED, train, effort=effort).proxies for one, effort in EFFORTS.items()}


def test_searches_side_by_side_find_what_each_finds_alone(alone: Found, tmp_path: Path) -> None:
    networks = {replace(proxy.candidate.spec, name="x") for proxies in alone.values() for proxy in proxies}
    for trained in (len(networks), 0):  # begun again, nothing is left to train
        with (
            TrialStore(tmp_path / "trials.db") as store,
            TOOL["Pool"](HiddenOptimum(most_macs=LIMITED.target), store, workers=2) as pool,
        ):
            assert TOOL["compare"](SPACE, LIMITED, pool, EFFORTS) == alone
            assert pool.trained == trained
            assert len(store) == len(networks)


def test_an_error_of_a_training_ends_the_comparison(tmp_path: Path) -> None:
    one, effort = next(iter(EFFORTS.items()))
    failing = {one: replace(effort, trials=1, proxy_seed=1)}
    with (
        TrialStore(tmp_path / "trials.db") as store,
        TOOL["Pool"](OneFails(), store, workers=1) as pool,
        pytest.raises(ArithmeticError, match="the loss became nan"),
    ):
        TOOL["compare"](SPACE, LIMITED, pool, failing)


def test_the_table_has_the_best_so_far(alone: Found) -> None:
    rows = list(csv.DictReader(io.StringIO(TOOL["rewards_csv"](alone))))
    assert len(rows) == sum(len(proxies) for proxies in alone.values())
    for (sampler, seed), proxies in alone.items():
        own = [row for row in rows if (row["sampler"], row["seed"]) == (sampler, str(seed))]
        assert [int(row["trial"]) for row in own] == list(range(1, len(proxies) + 1))
        for count, row in enumerate(own, start=1):
            assert float(row["best_reward"]) == max(proxy.reward for proxy in proxies[:count])


def test_medians_and_the_best_search(alone: Found) -> None:
    best = {one: max(proxy.reward for proxy in proxies) for one, proxies in alone.items()}
    summary = TOOL["medians"](alone)
    assert summary.keys() == set(SAMPLERS)
    for sampler, figures in summary.items():
        rewards = [best[one] for one in EFFORTS if one[0] == sampler]
        assert (figures["median"], figures["lowest"]) == (statistics.median(rewards), min(rewards))
        if sampler != "random":
            assert figures["beats_random"] is (figures["median"] > summary["random"]["median"])
    chosen = TOOL["best_search"](alone)
    assert summary[chosen[0]]["median"] == max(figures["median"] for figures in summary.values())
    assert best[chosen] == summary[chosen[0]]["highest"]


def test_the_figure_has_a_line_and_an_area_for_each_sampler(alone: Found) -> None:
    figure = Figure()
    TOOL["draw"](figure, alone)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.get_lines()] == list(SAMPLERS)
    assert len(axes.collections) == len(SAMPLERS)
