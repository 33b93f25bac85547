"""A small search space with a made-up accuracy whose best network is known."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

from phiscale.scaling.budget import Budget
from phiscale.scaling.complexity import complexity
from phiscale.search.objective import Report, Score, Trial
from phiscale.search.reward import Goal
from phiscale.search.runner import Progress
from phiscale.search.space import SearchSpace
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

__all__ = ["SPACE", "TEMPLATE", "HiddenOptimum", "Recorder", "goal"]


def _stage(kernel_size: int, expand_ratio: int, channels: int, layers: int, stride: int) -> StageSpec:
    return StageSpec(
        block="mbconv",
        num_layers=layers,
        kernel_size=kernel_size,
        stride=stride,
        expand_ratio=expand_ratio,
        out_channels=channels,
        se_ratio=0.25,
    )


TEMPLATE = NetworkSpec(
    name="template",
    stem=StemSpec(out_channels=16, stride=1),
    stages=(_stage(3, 1, 8, 1, 1), _stage(3, 6, 16, 2, 2), _stage(5, 6, 24, 2, 2), _stage(3, 6, 40, 2, 2)),
    head=HeadSpec(out_channels=64),
    image_size=(28, 28),
    in_channels=1,
    num_classes=10,
)
SPACE = SearchSpace.around(TEMPLATE)


def goal(share: float = 1.0, *, exponent: float = -0.07) -> Goal:
    """A limit on the multiply-adds: a share of the template's."""
    return Goal(limits=Budget(macs=share * complexity(TEMPLATE).macs), exponent=exponent)


class HiddenOptimum:
    """An objective: accuracy falls with the distance from one network of the space, chosen by a seed.

    Every choice has its own weight, so some matter and most matter little, as in real networks.

    Args:
        space: The networks.
        most_macs: Limit on the multiply-adds of the best one, which needs at least 60 % of it.
        seed: Chooses the best network and the weights.
        fields: Fields of a stage that matter; None is all.
    """

    HIGHEST, RANGE = 0.95, 0.6

    def __init__(
        self,
        space: SearchSpace = SPACE,
        *,
        most_macs: float,
        seed: int = 0,
        fields: tuple[str, ...] | None = None,
    ) -> None:
        self.space, self.choices = space, space.choices()
        rng = random.Random(seed)
        weights = {name: rng.random() ** 2 for name in self.choices}
        if fields is not None:
            weights = {name: weight * name.endswith(fields) for name, weight in weights.items()}
        self.weights = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        while True:
            self.best = space.decode({name: rng.choice(values) for name, values in self.choices.items()})
            if 0.6 * most_macs < complexity(self.best).macs <= most_macs:
                break
        self.calls = 0

    def __call__(
        self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        self.calls += 1
        # A proxy has other images; the space knows networks at their own size only.
        own = self.space.encode(replace(spec, image_size=self.space.template.image_size))
        best, distance = self.space.encode(self.best), 0.0
        for name, values in self.choices.items():
            steps = abs(values.index(own[name]) - values.index(best[name]))
            distance += self.weights[name] * steps / max(1, len(values) - 1)
        return Score(top1=self.HIGHEST - self.RANGE * distance, epochs=epochs or 10, train_seconds=1.0)


class Recorder:
    """Trains with an objective, keeps results in memory, and remembers what it was asked for."""

    def __init__(self, objective: HiddenOptimum) -> None:
        self.objective = objective
        self.asked: list[Trial] = []
        self.scores: dict[str, Score] = {}

    def __call__(self, trials: Iterable[Trial], *, progress: Progress | None = None) -> Mapping[str, Score]:
        wanted = list(trials)
        self.asked += wanted
        for done, trial in enumerate(wanted, start=1):
            if trial.key not in self.scores:
                self.scores[trial.key] = self.objective(trial.spec, seed=trial.seed, epochs=trial.epochs)
            if progress:
                progress(done, len(wanted))
        return {trial.key: self.scores[trial.key] for trial in wanted}
