"""Which networks to try next: Optuna's samplers over a search space, with limits that hold.

Optuna's constraints are soft, a sampler only learns to avoid what breaks them. So what it proposes is
counted first; a network beyond a limit is told to it as such and never leaves here, nor does a network
that was proposed before.

The samplers are seeded and their study lives in memory. A search that is begun again makes the same
proposals as long as it is told the same scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from phiscale.errors import BudgetError, SpecError, require
from phiscale.search.reward import Goal
from phiscale.search.space import SearchSpace
from phiscale.search.store import quiet_optuna
from phiscale.spec import NetworkSpec

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as OptunaTrial

__all__ = ["SAMPLERS", "Candidate", "Proposals", "SamplerName"]

SamplerName = Literal["nsga2", "tpe", "random"]
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
# Proposals in a row without a new network within the limits, after which there are taken to be no more.
MOST_IN_VAIN = 1000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network within all limits.

    Attributes:
        number: In the order of the proposals, from 0.
        spec: The network.
        costs: What it needs of every limited thing.
    """

    number: int
    spec: NetworkSpec
    costs: Mapping[str, float]


class Proposals:
    """Proposes networks of a space, each once, and learns from their scores.

    ``"nsga2"`` looks for the whole front of accuracy and cost, ``"tpe"`` for the best reward; ``"random"``
    learns nothing and is what the others are to be compared with.

    Args:
        space: The networks.
        goal: Limits, cost and reward.
        sampler: One of `SAMPLERS`.
        seed: Seed of the sampler.
        population: Networks in a generation of NSGA-II; infeasible ones count.
        start: A network of the space that is proposed first.

    Attributes:
        rejected: Proposals beyond a limit so far.
        repeated: Proposals that had been made before, so far.

    Raises:
        BudgetError: Not even the smallest network of the space is within the limits.
        SpecError: There is no such sampler, or `start` is not in the space.
        MissingDependencyError: Optuna is not installed.
    """

    def __init__(
        self,
        space: SearchSpace,
        goal: Goal,
        *,
        sampler: SamplerName,
        seed: int,
        population: int = 16,
        start: NetworkSpec | None = None,
    ) -> None:
        if sampler not in SAMPLERS:
            raise SpecError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler!r}")
        _check_possible(space, goal)
        self._space, self._goal = space, goal
        self._choices = space.choices()
        self._both = sampler == "nsga2"
        self._study = _study(sampler, seed, population)
        if start is not None:
            self._study.enqueue_trial(space.encode(start))
        self._known: dict[NetworkSpec, Candidate] = {}
        self._scores: dict[int, float] = {}
        self._waiting: dict[int, list[OptunaTrial]] = {}
        self.rejected = self.repeated = 0

    def ask(self, count: int) -> list[Candidate]:
        """New networks to train.

        Args:
            count: How many at most; there are fewer where the sampler finds no more.
        """
        found: list[Candidate] = []
        in_vain = 0
        while len(found) < count and in_vain < MOST_IN_VAIN:
            candidate = self._propose()
            in_vain = in_vain + 1 if candidate is None else 0
            if candidate is not None:
                found.append(candidate)
        return found

    def tell(self, candidate: Candidate, top1: float) -> None:
        """Say how good a proposed network is.

        Args:
            candidate: From `ask`.
            top1: Its accuracy in [0, 1].
        """
        self._scores[candidate.number] = top1
        for trial in self._waiting.pop(candidate.number):
            self._study.tell(trial, self._values(top1, candidate.costs[self._goal.cost]))

    def _propose(self) -> Candidate | None:
        trial = self._study.ask()
        for name, values in self._choices.items():
            trial.suggest_categorical(name, values)
        spec = self._space.decode(trial.params)
        known = self._known.get(spec)
        if known is not None:
            self.repeated += 1
            self._repeat(trial, known)
            return None
        costs = self._goal.costs(spec)
        for name, excess in self._goal.violations(costs).items():
            trial.set_constraint(name, excess)
        if not self._goal.fits(costs):
            self.rejected += 1
            # The values count for nothing: among what breaks limits, samplers look at the constraints.
            self._study.tell(trial, self._values(0.0, next(iter(costs.values()))))
            return None
        number = len(self._known)
        candidate = Candidate(number=number, spec=replace(spec, name=f"candidate{number}"), costs=costs)
        self._known[spec] = candidate
        self._waiting[number] = [trial]
        return candidate

    def _repeat(self, trial: OptunaTrial, known: Candidate) -> None:
        for name, excess in self._goal.violations(known.costs).items():
            trial.set_constraint(name, excess)
        if known.number in self._scores:
            self._study.tell(trial, self._values(self._scores[known.number], known.costs[self._goal.cost]))
        else:
            self._waiting[known.number].append(trial)

    def _values(self, top1: float, cost: float) -> list[float]:
        return [top1, cost] if self._both else [self._goal.reward(top1, cost)]


def _check_possible(space: SearchSpace, goal: Goal) -> None:
    smallest = space.smallest()
    costs = goal.costs(smallest)
    for name, excess in goal.violations(costs).items():
        if excess > 0:
            raise BudgetError(
                f"the smallest network of the space needs {name}={costs[name]:,.4g}, and the limit is "
                f"{goal.limits.limits()[name]:,.4g}; raise it, or search around a smaller template"
            )


def _study(sampler: SamplerName, seed: int, population: int) -> Study:
    optuna = require("optuna", extra="search")
    directions = ["maximize", "minimize"] if sampler == "nsga2" else ["maximize"]
    made = {
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=population),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }[sampler]()
    with quiet_optuna():
        study: Study = optuna.create_study(directions=directions, sampler=made)
    return study
