"""Schedules, parameter groups and optimizers against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy_training import PREPROCESS, RECIPE, network

from phiscale.training.optim import build_optimizer, lr_factor, parameter_groups, ramp
from phiscale.training.recipe import RECIPES, Recipe
from phiscale.training.task import ClassificationTask


def test_paper_schedule_is_a_staircase_of_0_97_every_2_4_epochs() -> None:
    recipe, steps = RECIPES["paper"], 5
    for step in range(5 * steps, recipe.epochs * steps):
        # In integers: 2.4 epochs of 5 steps are 12 steps.
        expected = 0.97 ** (step // 12)
        assert lr_factor(step, steps_per_epoch=steps, recipe=recipe) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "exponential"])
def test_warmup_is_linear_and_ends_at_the_peak(schedule: str) -> None:
    recipe = Recipe().override({"schedule": schedule, "warmup_epochs": 2, "decay_epochs": 5})
    factors = [lr_factor(step, steps_per_epoch=10, recipe=recipe) for step in range(21)]
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert factors[20] == 1.0


def test_cosine_halves_midway_and_ends_at_zero() -> None:
    recipe = Recipe(epochs=10, warmup_epochs=2)
    at = {step: lr_factor(step, steps_per_epoch=100, recipe=recipe) for step in (200, 400, 600, 999, 1000)}
    assert at[200] == 1.0
    assert at[400] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert at[600] == pytest.approx(0.5)
    assert 0 < at[999] < 1e-4
    assert at[1000] == 0.0


def test_peak_rate_follows_the_batch() -> None:
    recipe = RECIPES["paper"].override({"batch_size": 4096})
    # Section 5.2 gives 0.256 for the authors' batch of 4096.
    assert recipe.peak_learning_rate == pytest.approx(0.256)
    assert recipe.override({"learning_rate_batch": 0}).peak_learning_rate == 0.016
    assert recipe.override({"accumulate": 2}).peak_learning_rate == pytest.approx(0.512)


def test_unfrozen_layers_warm_up_anew() -> None:
    recipe = Recipe(epochs=10, freeze_epochs=3, warmup_epochs=1.0)
    task = ClassificationTask(network(), recipe=recipe, preprocess=PREPROCESS, steps_per_epoch=10)
    ratios = [task.learning_rate(step, body=True) / task.learning_rate(step) for step in range(29, 42)]
    assert ratios == pytest.approx([ramp(step, start=30, length=10) for step in range(29, 42)])
    assert ratios[0] == 0.0
    assert ratios[1] == pytest.approx(0.1)
    assert ratios[-1] == 1.0


def test_every_parameter_is_in_one_group_and_norms_and_biases_do_not_decay() -> None:
    net = network()
    groups = parameter_groups(net, RECIPE.override({"weight_decay": 0.1, "layer_decay": 0.5}))
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(net.parameters()))
    decay = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    for module in net.modules():
        norm = isinstance(module, torch.nn.BatchNorm2d)
        for name, parameter in module.named_parameters(recurse=False):
            assert decay[parameter] == (0.0 if norm or name == "bias" else 0.1)


def test_layers_learn_slower_towards_the_stem() -> None:
    net = network()
    groups = parameter_groups(net, RECIPE.override({"layer_decay": 0.5}))
    scale = {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}
    body = {parameter: group["body"] for group in groups for parameter in group["params"]}
    parts = [net.stem, net.stages[0], net.stages[1], net.head, net.classifier]
    for distance, part in enumerate(reversed(parts)):
        for parameter in part.parameters():
            assert scale[parameter] == 0.5**distance
            assert body[parameter] == (distance > 0)


def test_without_layer_decay_there_are_few_groups() -> None:
    # More groups are more launches per step: with and without decay, for body and classifier.
    assert len(parameter_groups(network(), RECIPE)) == 4


def step_by(recipe: Recipe, weight: float, gradient: float) -> float:
    parameter = torch.nn.Parameter(torch.full((1, 1), weight))
    parameter.grad = torch.full((1, 1), gradient)
    group = {"params": [parameter], "weight_decay": recipe.weight_decay}
    build_optimizer([group], recipe).step()
    return parameter.item()


def test_rmsprop_is_tensorflows() -> None:
    recipe = RECIPES["paper"].override({"learning_rate": 0.1, "learning_rate_batch": 0, "weight_decay": 0.01})
    gradient = 0.5 + 0.01 * 2.0
    mean_square = 0.9 * 1.0 + 0.1 * gradient**2  # the mean square starts at one
    expected = 2.0 - 0.1 * gradient / math.sqrt(mean_square + 1e-3)
    assert step_by(recipe, 2.0, 0.5) == pytest.approx(expected, rel=1e-6)


def test_rmsprop_over_many_steps_with_a_changing_rate() -> None:
    """Against TensorFlow's update written out, with ε in the root and the rate within the momentum."""
    recipe = RECIPES["paper"].override({"weight_decay": 1e-5, "learning_rate_batch": 0})
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3))
    parameter = torch.nn.Parameter(torch.tensor(weights))
    group = {"params": [parameter], "weight_decay": recipe.weight_decay}
    optimizer = build_optimizer([group], recipe)
    mean_square, momentum = np.ones_like(weights), np.zeros_like(weights)
    for step in range(30):
        # A rate that changes tells the rate within the momentum from one that multiplies it afterwards.
        rate = 0.1 * 0.97**step
        gradient = rng.normal(size=weights.shape)
        parameter.grad = torch.tensor(gradient)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        gradient = gradient + 1e-5 * weights
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        momentum = 0.9 * momentum + rate * gradient / np.sqrt(mean_square + 1e-3)
        weights = weights - momentum
    np.testing.assert_allclose(parameter.detach().numpy(), weights, rtol=1e-10)


def test_weight_decay_of_the_paper_reaches_kernels_alone() -> None:
    net = network()
    groups = parameter_groups(net, RECIPES["paper"])
    assert {group["weight_decay"] for group in groups} == {0.0, 1e-5}
    for group in groups:
        assert all((parameter.ndim > 1) == (group["weight_decay"] > 0) for parameter in group["params"])


def test_sgd_and_adamw() -> None:
    plain = Recipe(optimizer="sgd", learning_rate=0.1, learning_rate_batch=0, weight_decay=0.01)
    assert step_by(plain, 2.0, 0.5) == pytest.approx(2.0 - 0.1 * (0.5 + 0.02), rel=1e-6)
    adamw = plain.override({"optimizer": "adamw"})
    assert step_by(adamw, 2.0, 0.5) == pytest.approx(2.0 * (1 - 0.1 * 0.01) - 0.1, rel=1e-5)
