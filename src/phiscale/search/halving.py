"""Successive halving in rungs: all are trained a little, the better ones longer (Jamieson & Talwalkar 2016).

A rung ends before the next begins, and a network is trained anew in it, with a schedule of the rung's own
length. Optuna's `SuccessiveHalvingPruner` decides while trainings run, so its choice depends on which of
them ended first: with several workers, or after a kill, another network may win. Here Optuna's
`PercentilePruner` is asked when all results of a rung are known, so the answer depends on them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from phiscale.errors import SpecError, require
from phiscale.search.store import quiet_optuna

__all__ = ["expected_survivors", "rung_epochs", "survivors"]

K = TypeVar("K")


def rung_epochs(epochs: int, *, reduction: int = 3, min_epochs: int = 3) -> tuple[int, ...]:
    """Epochs of each rung, from the shortest to the whole length.

    Args:
        epochs: Of the last rung.
        reduction: About how many times longer each rung is than the one before.
        min_epochs: Rungs shorter than this are left out.

    Raises:
        SpecError: An argument is below 1, or `reduction` below 2.

    Examples:
        >>> rung_epochs(30), rung_epochs(4)
        ((3, 10, 30), (4,))
    """
    if epochs < 1 or min_epochs < 1 or reduction < 2:
        raise SpecError(
            f"epochs and min_epochs must be at least 1 and reduction at least 2, got {epochs}, {min_epochs} "
            f"and {reduction}"
        )
    rungs = [epochs]
    while (shorter := round(rungs[0] / reduction)) >= min_epochs and shorter < rungs[0]:
        rungs.insert(0, shorter)
    return tuple(rungs)


def survivors(top1: Mapping[K, float], *, reduction: int = 3) -> list[K]:
    """Those that go on to the next rung: the best 1 / `reduction` of them, and at least one.

    Args:
        top1: What each came to in this rung.
        reduction: Of so many, one goes on. What equals the last that goes on goes on too.

    Returns:
        In the order of `top1`.

    Raises:
        MissingDependencyError: Optuna is not installed.
    """
    optuna = require("optuna", extra="search")
    with quiet_optuna():
        pruner = optuna.pruners.PercentilePruner(100 / reduction, n_startup_trials=0)
        study = optuna.create_study(direction="maximize", pruner=pruner)
        for value in top1.values():
            study.add_trial(optuna.trial.create_trial(value=value, intermediate_values={0: value}))
        kept = []
        for key, value in top1.items():
            trial = study.ask()
            trial.report(value, step=0)
            if not trial.should_prune():
                kept.append(key)
    return kept


def expected_survivors(count: int, *, reduction: int = 3) -> int:
    """How many of `count` go on, where no two came to the same."""
    return len(survivors({index: float(index) for index in range(count)}, reduction=reduction))
