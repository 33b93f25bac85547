"""The search for a baseline: many networks trained a little, the best of them in full.

Tan & Le 2019 (section 4) found EfficientNet-B0 this way, and scaling only pays from a baseline that suits
the data. A sampler proposes networks within all limits; each is trained as a proxy, which is a few epochs
on small images. Those on the front of accuracy against cost are then trained in full, with the template of
the space beside them, so that it can be seen what the search was worth.

Nothing of the search itself is stored: the proposals follow from the seed and the scores, and the scores are
in the store. Begun again, it takes the recorded ones and goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

from phiscale.errors import SpecError
from phiscale.search.coefficients import Stage
from phiscale.search.objective import Score, Trial
from phiscale.search.pareto import dominates, pareto_front
from phiscale.search.proposals import Candidate, Proposals, SamplerName
from phiscale.search.reward import Goal
from phiscale.search.runner import Progress
from phiscale.search.space import SearchSpace
from phiscale.search.statistics import Interval, confidence_interval
from phiscale.spec import NetworkSpec, as_size

__all__ = [
    "BaselineSearch",
    "Effort",
    "Exploration",
    "Finalist",
    "Proxy",
    "Train",
    "explore",
    "search_baseline",
]


class Train(Protocol):
    """Trains what has no recorded result: `run_trials` with its objective, store and workers set."""

    def __call__(self, trials: Iterable[Trial], *, progress: Progress | None = None) -> Mapping[str, Score]:
        """Return `Trial.key` → result."""
        ...


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is trained.

    Attributes:
        sampler: ``"nsga2"``, ``"tpe"``, or ``"random"`` to compare with.
        trials: Networks that are trained as proxies.
        generation: Networks that are proposed at once, on the scores of those before; as many can be
            trained side by side. It is also the population of NSGA-II.
        proxy_epochs: Epochs of a proxy; None is the recipe's number.
        proxy_image_size: Side or (height, width) of a proxy's images in pixels; None is the network's own.
        finalists: Networks of the front that are trained in full, at most, those of the best reward.
        final_epochs: Epochs of a full training; None is the recipe's number.
        final_seeds: Seeds of the full trainings of each finalist.
        seed: Seed of the sampler.
        proxy_seed: Seed of the proxies' trainings; None is `seed`. Searches that differ in `seed` alone share
            their trainings where this is given.

    Raises:
        SpecError: A number is not positive, or a seed is given twice.
    """

    sampler: SamplerName = "nsga2"
    trials: int = 64
    generation: int = 8
    proxy_epochs: int | None = 3
    proxy_image_size: int | tuple[int, int] | None = None
    finalists: int = 8
    final_epochs: int | None = None
    final_seeds: tuple[int, ...] = (0,)
    seed: int = 0
    proxy_seed: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("generation", 2), ("finalists", 1)):
            if getattr(self, name) < least:
                raise SpecError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("proxy_epochs", "final_epochs"):
            epochs = getattr(self, name)
            if epochs is not None and epochs < 1:
                raise SpecError(f"{name} must be at least 1, got {epochs}")
        if not self.final_seeds or len(set(self.final_seeds)) != len(self.final_seeds):
            raise SpecError(f"final_seeds must be different numbers, got {self.final_seeds!r}")

    def proxy(self, spec: NetworkSpec) -> Trial:
        """The short training of a network. Only the image size differs, so the weights' shapes stay."""
        if self.proxy_image_size is not None:
            spec = replace(spec, image_size=as_size(self.proxy_image_size))
        seed = self.seed if self.proxy_seed is None else self.proxy_seed
        return Trial(spec=spec, seed=seed, epochs=self.proxy_epochs)

    def full(self, spec: NetworkSpec) -> list[Trial]:
        """The full trainings of a network."""
        return [Trial(spec=spec, seed=seed, epochs=self.final_epochs) for seed in self.final_seeds]


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A network that was trained a little.

    Attributes:
        candidate: The network and what it needs.
        cost: The cost that the reward counts.
        score: What the short training gave.
        reward: By that score.
    """

    candidate: Candidate
    cost: float
    score: Score
    reward: float


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """The first half of a search: what was proposed, and what the short trainings gave.

    Attributes:
        proxies: All networks that were trained, in the order of the proposals.
        rejected: Proposals beyond a limit, which were not trained.
        repeated: Proposals of a network that had been proposed before.
    """

    proxies: tuple[Proxy, ...]
    rejected: int
    repeated: int


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A network that was trained in full.

    Attributes:
        spec: The network.
        costs: What it needs of every limited thing.
        cost: The cost that the reward counts.
        scores: What each seed gave.
        top1: Their mean, with its confidence interval.
        reward: By the mean.
        is_template: Whether it is the template of the space.
    """

    spec: NetworkSpec
    costs: Mapping[str, float]
    cost: float
    scores: tuple[Score, ...]
    top1: Interval
    reward: float
    is_template: bool


@dataclass(frozen=True, kw_only=True)
class BaselineSearch:
    """What a search found.

    Attributes:
        space: Where it looked.
        goal: What it looked for.
        effort: How hard it looked.
        proxies: All networks that were trained, in the order of the proposals.
        finalists: Those that were trained in full, the best reward first.
        rejected: Proposals beyond a limit, which were not trained.
        repeated: Proposals of a network that had been proposed before.
    """

    space: SearchSpace
    goal: Goal
    effort: Effort
    proxies: tuple[Proxy, ...]
    finalists: tuple[Finalist, ...]
    rejected: int
    repeated: int

    @property
    def best(self) -> Finalist:
        """The finalist of the best reward; the template where nothing better was found."""
        return self.finalists[0]

    @property
    def template(self) -> Finalist | None:
        """The template of the space, trained in full; None where it is beyond a limit."""
        return next((one for one in self.finalists if one.is_template), None)

    @property
    def front(self) -> list[Finalist]:
        """The finalists that no other one beats in accuracy and cost, the cheapest first."""
        return pareto_front(self.finalists, place=_place)

    @property
    def dominates_template(self) -> bool | None:
        """Whether a finalist beats the template in accuracy at no more cost; None without a template."""
        template = self.template
        if template is None:
            return None
        return any(dominates(_place(one), _place(template)) for one in self.finalists)


@dataclass(frozen=True)
class _InStages:
    train: Train
    stage: Stage

    def __call__(self, label: str, trials: list[Trial]) -> Mapping[str, Score]:
        with self.stage(label) as progress:
            return self.train(trials, progress=progress)


def search_baseline(
    space: SearchSpace,
    goal: Goal,
    train: Train,
    *,
    effort: Effort = Effort(),
    stage: Stage | None = None,
) -> BaselineSearch:
    """Search a space for the network of the best reward.

    Networks beyond a limit are never trained. The template is proposed first, where it is within the limits.
    With equal arguments and scores the result is equal, whether the search ran at once, was killed and begun
    again, or ran on several workers.

    Args:
        space: Where to look. Its template should cost about as much as is wanted.
        goal: Limits, cost and reward.
        train: Trains, and records what it has trained.
        effort: How much.
        stage: Told of each generation and of the full trainings.

    Raises:
        BudgetError: No network of the space is within the limits.
        SpecError: The proxies' images are too small for the network.
        MissingDependencyError: Optuna is not installed.
    """
    explored = explore(space, goal, train, effort=effort, stage=stage)
    return BaselineSearch(
        space=space,
        goal=goal,
        effort=effort,
        proxies=explored.proxies,
        finalists=_finalists(space, goal, _staged(train, stage), effort, explored.proxies),
        rejected=explored.rejected,
        repeated=explored.repeated,
    )


def explore(
    space: SearchSpace,
    goal: Goal,
    train: Train,
    *,
    effort: Effort = Effort(),
    stage: Stage | None = None,
) -> Exploration:
    """Propose networks and train each a little, without the full trainings at the end of `search_baseline`.

    Args and Raises: those of `search_baseline`.
    """
    _check_proxies(effort, space.template)
    start = space.template if goal.fits(goal.costs(space.template)) else None
    proposals = Proposals(
        space, goal, sampler=effort.sampler, seed=effort.seed, population=effort.generation, start=start
    )
    staged = _staged(train, stage)
    proxies: list[Proxy] = []
    while len(proxies) < effort.trials:
        candidates = proposals.ask(min(effort.generation, effort.trials - len(proxies)))
        if not candidates:
            break  # a space of few networks
        done = len(proxies) + len(candidates)
        label = f"candidates up to {done} of {effort.trials}"
        scores = staged(label, [effort.proxy(candidate.spec) for candidate in candidates])
        for candidate in candidates:
            score = scores[effort.proxy(candidate.spec).key]
            proposals.tell(candidate, score.top1)
            cost = candidate.costs[goal.cost]
            reward = goal.reward(score.top1, cost)
            proxies.append(Proxy(candidate=candidate, cost=cost, score=score, reward=reward))
    return Exploration(proxies=tuple(proxies), rejected=proposals.rejected, repeated=proposals.repeated)


def _staged(train: Train, stage: Stage | None) -> _InStages:
    return _InStages(train, stage or (lambda _: nullcontext()))


def _check_proxies(effort: Effort, template: NetworkSpec) -> None:
    size, stride = effort.proxy(template).spec.image_size, template.output_stride
    if min(size) < stride:
        raise SpecError(
            f"proxy_image_size {size[0]}×{size[1]} is too small: {template.name} divides each side by "
            f"{stride}; give at least {stride}"
        )


def _finalists(
    space: SearchSpace,
    goal: Goal,
    train: _InStages,
    effort: Effort,
    proxies: Sequence[Proxy],
) -> tuple[Finalist, ...]:
    """The best of the front and the template, trained in full, the best reward first."""
    front = pareto_front(proxies, place=lambda proxy: (proxy.cost, proxy.score.top1))
    front.sort(key=lambda proxy: -proxy.reward)
    chosen = front[: effort.finalists]
    chosen += [
        proxy for proxy in proxies if _is(proxy.candidate.spec, space.template) and proxy not in chosen
    ]
    trials = {proxy.candidate.number: effort.full(proxy.candidate.spec) for proxy in chosen}
    everything = [trial for several in trials.values() for trial in several]
    scores = train(f"finalists: {len(chosen)} networks in full", everything)
    found = [
        _finalist(proxy, tuple(scores[trial.key] for trial in trials[proxy.candidate.number]), goal, space)
        for proxy in chosen
    ]
    # Equal rewards: the cheaper one.
    return tuple(sorted(found, key=lambda one: (-one.reward, one.cost)))


def _finalist(proxy: Proxy, scores: tuple[Score, ...], goal: Goal, space: SearchSpace) -> Finalist:
    top1 = confidence_interval([score.top1 for score in scores])
    candidate = proxy.candidate
    return Finalist(
        spec=candidate.spec,
        costs=candidate.costs,
        cost=proxy.cost,
        scores=scores,
        top1=top1,
        reward=goal.reward(top1.mean, proxy.cost),
        is_template=_is(candidate.spec, space.template),
    )


def _is(spec: NetworkSpec, other: NetworkSpec) -> bool:
    """Whether two specs are of one network, whatever its names are."""
    return replace(spec, name=other.name) == other


def _place(one: Finalist) -> tuple[float, float]:
    return (one.cost, one.top1.mean)
