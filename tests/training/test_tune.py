"""What is fastest is chosen, of what computes the same; the clock is the tests' own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy_training import RECIPE, SPEC, assert_same_weights, fit

from phiscale.nn.network import build_network
from phiscale.training import kernels, tune
from phiscale.training.recipe import RECIPES, Recipe
from phiscale.training.tune import PLAIN, WAYS, Way, sample_size, worth_tuning

CPU = torch.device("cpu")
FAST = Way(precision="32-true", fast_layers=True)
MIXED = Way(precision="bf16-mixed", fast_layers=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[Way, float]:
    """Seconds of a step of each way, to be changed by a test."""
    seconds = {PLAIN: 3.0, FAST: 2.0, MIXED: 1.0}
    monkeypatch.setattr(tune._Trial, "time", lambda self, way: seconds[way])
    return seconds


def choose(recipe: Recipe = RECIPE) -> tune.Tuning:
    torch.manual_seed(0)
    return tune.tune(build_network(SPEC), recipe.override({"tune": "auto"}), device=CPU)


def test_the_fastest_is_chosen_and_written_down(clock: dict[Way, float]) -> None:
    found = choose()
    assert (found.way, found.times) == (MIXED, 3.0)
    assert str(found) == "mixed bf16, fast layers: 3.0 × as fast as float32, plain layers (tune)"
    assert found.recipe == RECIPE.override({"precision": "bf16-mixed", "fast_layers": True})
    assert found.recipe.tune == "off"
    clock[MIXED] = 2.5
    assert choose().way == FAST


def test_plain_stays_where_little_is_gained(clock: dict[Way, float]) -> None:
    clock.update({PLAIN: 1.0, FAST: 0.97})
    found = choose()
    assert (found.way, found.recipe) == (PLAIN, RECIPE)
    assert str(found) == "float32, plain layers: nothing else is faster here (tune)"


@pytest.mark.parametrize("factor", [1.1, math.nan])
def test_what_computes_something_else_is_left_out(
    factor: float, clock: dict[Way, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = kernels.norm_swish

    def wrong(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        return right(x, norm) * (factor if x.dtype == torch.float32 else 1)

    monkeypatch.setattr(kernels, "norm_swish", wrong)
    assert set(choose().seconds) == {PLAIN, MIXED}
    monkeypatch.setattr(kernels, "norm_swish", lambda x, norm: right(x, norm) * -1)
    assert set(choose().seconds) == {PLAIN}


def test_what_the_machine_cannot_do_is_left_out(
    clock: dict[Way, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> Tensor:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(kernels, "depthwise", missing)
    assert choose().way == PLAIN


def test_really_measured() -> None:
    before = torch.get_rng_state()
    found = choose()
    assert set(found.seconds) == set(WAYS["cpu"])
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_ways_of_gpus_start_from_plain() -> None:
    assert all(ways[0] == PLAIN for ways in WAYS.values())
    # The fast layers are a CPU's.
    assert not any(way.fast_layers for way in WAYS["cuda"])
    found = tune.tune(build_network(SPEC), RECIPE, device=CPU, ways=WAYS["cuda"])
    assert set(found.seconds) <= set(WAYS["cuda"])


def test_short_runs_are_not_measured() -> None:
    recipe = Recipe(epochs=10, batch_size=32)
    # 3 ways of 4 steps, and one step of torch's autocast: 13 × 3 images are a tenth of 390.
    assert sample_size((224, 224), 32, CPU) == 3
    assert worth_tuning(recipe, (224, 224), images=39, device=CPU)
    assert not worth_tuning(recipe, (224, 224), images=38, device=CPU)
    assert not worth_tuning(recipe, (224, 224), images=10**6, device=torch.device("mps"))


def test_whoever_gives_a_precision_means_it() -> None:
    fast = RECIPES["fast"]
    assert {recipe.tune for recipe in RECIPES.values()} == {"auto"}
    assert Recipe().tune == "off"
    assert fast.override({"epochs": 3}).tune == "auto"
    assert fast.override({"precision": "32-true"}).tune == "off"
    assert fast.override({"fast_layers": "yes"}).tune == "off"
    assert fast.override({"precision": "bf16-mixed", "tune": "auto"}).tune == "auto"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_runs_with_fast_layers_repeat_and_learn(precision: str, tmp_path: Path) -> None:
    recipe = RECIPE.override({"fast_layers": True, "precision": precision})
    runs = [fit(tmp_path / name, recipe) for name in ("one", "other")]
    assert_same_weights(tmp_path / "one", tmp_path / "other")
    assert runs[0].best is not None
    assert runs[0].best.train_top1 > 0.5
