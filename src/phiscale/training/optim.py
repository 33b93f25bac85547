"""Optimizers, their parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from phiscale.errors import require
from phiscale.nn.network import Network
from phiscale.training.recipe import Recipe

__all__ = ["build_optimizer", "layer_depths", "lr_factor", "parameter_groups", "ramp"]


def lr_factor(step: int, *, steps_per_epoch: int, recipe: Recipe) -> float:
    """What the recipe's peak learning rate is multiplied by at an optimizer step.

    Warm-up is linear: (step + 1) / w over the first w = warmup_epochs · steps_per_epoch steps. Then

    - ``"cosine"``: ½ (1 + cos(π t)), t running from 0 at the end of the warm-up to 1 at the end of the run;
    - ``"exponential"``: decay_rate ** ⌊epoch / decay_epochs⌋ with epochs counted from the first step,
      not from the end of the warm-up, as in the authors' code (a staircase, 0.97 every 2.4 epochs).

    Args:
        step: Optimizer steps taken so far, from 0.
        steps_per_epoch: Optimizer steps in an epoch.
        recipe: Gives epochs, warmup_epochs, schedule, decay_rate and decay_epochs.
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "exponential":
        # A hair of tolerance: 12 / 2.4 must count as 5 whole decays in floating point too.
        return recipe.decay_rate ** math.floor(step / (steps_per_epoch * recipe.decay_epochs) + 1e-9)
    total = recipe.epochs * steps_per_epoch
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def ramp(step: int, *, start: int, length: int) -> float:
    """Linear warm-up from 0 to 1 of layers that begin to train at step `start`; 0 before it.

    Examples:
        >>> [ramp(step, start=2, length=2) for step in range(5)]
        [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / max(1, length))


def layer_depths(net: Network) -> Iterator[tuple[str, nn.Module, int]]:
    """(name, module, depth) from the stem (0) over the stages and the head to the classifier."""
    parts: list[tuple[str, nn.Module]] = [("stem", net.stem)]
    parts += [(f"stages.{index}", stage) for index, stage in enumerate(net.stages)]
    if net.head is not None:
        parts.append(("head", net.head))
    parts.append(("classifier", net.classifier))
    for depth, (name, module) in enumerate(parts):
        yield name, module, depth


def parameter_groups(net: Network, recipe: Recipe) -> list[dict[str, Any]]:
    """The network's parameters in groups for an optimizer, none of them twice or left out.

    Norms and biases (every parameter of one dimension) have no weight decay. The learning rate of a
    part of the network is scaled by layer_decay ** (distance to the classifier).

    Returns:
        Groups with the keys ``params``, ``weight_decay``, ``lr_scale`` and ``body`` (False for the
        classifier, which trains while the rest is frozen).
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    parts = list(layer_depths(net))
    for name, module, depth in parts:
        scale = recipe.layer_decay ** (len(parts) - 1 - depth)
        for parameter in module.parameters():
            decay = 0.0 if parameter.ndim <= 1 else recipe.weight_decay
            groups.setdefault((scale, decay, name != "classifier"), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr_scale": scale, "body": body}
        for (scale, decay, body), params in groups.items()
    ]


def build_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over parameter groups, at the recipe's peak learning rate.

    Raises:
        MissingDependencyError: ``"rmsprop_tf"`` is asked for and timm is not installed.
    """
    rate = recipe.peak_learning_rate
    match recipe.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=(recipe.momentum, 0.999), fused=True)
        case "rmsprop_tf":
            # Decay 0.9 and epsilon 1e-3 inside the square root: section 5.2 of the paper, authors' code.
            rmsprop: type[torch.optim.Optimizer] = require("timm.optim.rmsprop_tf", extra="train").RMSpropTF
            options: dict[str, Any] = {"lr": rate, "alpha": 0.9, "eps": 1e-3, "momentum": recipe.momentum}
            return rmsprop(groups, **options)
