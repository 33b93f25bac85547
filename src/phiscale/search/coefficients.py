"""The paper's grid search: which α, β and γ serve a baseline best at φ = 1 (section 3.3, step 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from phiscale.errors import BudgetError, SpecError
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import CompoundRule
from phiscale.search.grid import Candidate, enumerate_rules, make_candidates
from phiscale.search.halving import expected_survivors, rung_epochs, survivors
from phiscale.search.objective import Objective, Trial
from phiscale.search.runner import Backend, Progress, local_backend, run_trials
from phiscale.search.statistics import Interval, confidence_interval, paired_difference
from phiscale.search.store import TrialStore
from phiscale.spec import NetworkSpec

__all__ = [
    "CoefficientPlan",
    "CoefficientResult",
    "Ranked",
    "Stage",
    "plan_coefficients",
    "search_coefficients",
]

Stage = Callable[[str], AbstractContextManager[Progress | None]]
"""Begins a part of the search by its name; gives what is told of the trainings in it."""


@dataclass(frozen=True, kw_only=True)
class CoefficientPlan:
    """What a search is going to train, decided before anything is.

    Attributes:
        baseline: The network at φ = 0.
        baseline_macs: Its multiply-adds.
        growth: Wanted multiply-adds at φ = 1, as a multiple of the baseline's.
        candidates: Those that compete.
        paper: The network of the paper's rule. Where it misses the cost target it does not compete, but it
            is trained for comparison.
        dropped: Networks that miss the cost target, and are not trained.
        grid_points: Rules on the grid.
        rungs: Epochs of each rung.
        reduction: Of so many candidates, one goes on to the next rung.
        seeds: Seeds of every rung.
        confirm_seeds: Further seeds, for the winner and the paper's rule.
    """

    baseline: NetworkSpec
    baseline_macs: int
    growth: float
    candidates: tuple[Candidate, ...]
    paper: Candidate
    dropped: tuple[Candidate, ...]
    grid_points: int
    rungs: tuple[int, ...]
    reduction: int
    seeds: tuple[int, ...]
    confirm_seeds: tuple[int, ...]

    @property
    def first_rung(self) -> tuple[Candidate, ...]:
        """What is trained in the first rung: the candidates, and the paper's in any case."""
        return self.candidates if self.paper in self.candidates else (*self.candidates, self.paper)

    def trainings(self) -> list[tuple[int, int]]:
        """(Trainings, epochs of each) of every rung and of the confirmation, as far as it is known before.

        The last is the most that it can be: a winner that is the paper's is confirmed alone.
        """
        counts = [len(self.candidates)]
        for _ in self.rungs[1:]:
            counts.append(expected_survivors(counts[-1], reduction=self.reduction))
        counts[0] = len(self.first_rung)
        rungs = [(count * len(self.seeds), epochs) for count, epochs in zip(counts, self.rungs, strict=True)]
        return [*rungs, (2 * len(self.confirm_seeds), self.rungs[-1])]


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A candidate with what it came to.

    Attributes:
        candidate: The network.
        rung: Last rung that it was trained in, from 1.
        epochs: Epochs of that rung.
        top1: Over the seeds, in that rung.
        first_top1: Over the seeds, in the first rung, which all candidates share.
        confirmed: Over the confirming seeds, which chose nothing; None where it was not confirmed.
    """

    candidate: Candidate
    rung: int
    epochs: int
    top1: Interval
    first_top1: Interval
    confirmed: Interval | None


@dataclass(frozen=True, kw_only=True)
class CoefficientResult:
    """What a search came to.

    Attributes:
        plan: What was asked.
        ranking: The best first: by the last rung, then by the mean in it.
        winner: The best of those that cost what was wanted.
        against_paper: Top-1 of the winner minus that of the paper's rule, seed by seed on the confirming
            seeds; None where the two are one network or nothing was confirmed.
    """

    plan: CoefficientPlan
    ranking: tuple[Ranked, ...]
    winner: Ranked
    against_paper: Interval | None

    @property
    def rule(self) -> CompoundRule:
        """The winner's α, β and γ."""
        return self.winner.candidate.rule


def plan_coefficients(
    baseline: NetworkSpec,
    *,
    epochs: int,
    step: float | str = 0.05,
    tolerance: float | str = 0.1,
    growth: float = 2.0,
    cost_tolerance: float = 0.2,
    seeds: Sequence[int] = (0, 1, 2),
    confirm_seeds: int = 5,
    reduction: int = 3,
    min_epochs: int = 3,
) -> CoefficientPlan:
    """Choose the candidates and how they will be compared.

    Args:
        baseline: The network at φ = 0.
        epochs: Of a whole training.
        step: Step of the grid of α, β and γ.
        tolerance: Largest |α·β²·γ² - growth| of a grid point.
        growth: Wanted growth of the multiply-adds.
        cost_tolerance: Largest distance of the counted growth from the wanted one, as a share of it.
        seeds: Every candidate is trained with each of them.
        confirm_seeds: How many further seeds confirm the winner.
        reduction: Of so many candidates, one goes on to the next rung.
        min_epochs: Epochs of the shortest rung.

    Raises:
        SpecError: An argument is out of range.
        BudgetError: No candidate costs what is wanted.
    """
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or confirm_seeds < 0:
        raise SpecError(f"seeds must be different numbers from 0, got {list(seeds)} and {confirm_seeds} more")
    rules = list(enumerate_rules(step=step, tolerance=tolerance, growth=growth))
    found = make_candidates(baseline, rules, growth=growth, cost_tolerance=cost_tolerance)
    candidates = tuple(candidate for candidate in found if candidate.on_target)
    paper = next(candidate for candidate in found if candidate.is_paper)
    if not candidates:
        nearest = min(found, key=lambda candidate: abs(candidate.macs_growth - growth))
        raise BudgetError(
            f"none of {len(found)} networks costs {growth:g} times {baseline.name} within "
            f"{cost_tolerance:.0%}; the nearest costs {nearest.macs_growth:.2f} times; "
            "raise cost_tolerance or make the step smaller"
        )
    first = max(seeds) + 1
    return CoefficientPlan(
        baseline=baseline,
        baseline_macs=complexity(baseline).macs,
        growth=float(growth),
        candidates=candidates,
        paper=paper,
        dropped=tuple(item for item in found if not item.on_target and item != paper),
        grid_points=len(rules),
        rungs=rung_epochs(epochs, reduction=reduction, min_epochs=min(min_epochs, epochs)),
        reduction=reduction,
        seeds=tuple(seeds),
        confirm_seeds=tuple(range(first, first + confirm_seeds)),
    )


def search_coefficients(
    plan: CoefficientPlan,
    objective: Objective,
    store: TrialStore,
    *,
    workers: int = 1,
    stage: Stage | None = None,
    backend: Backend | None = None,
) -> CoefficientResult:
    """Train the candidates rung by rung, and confirm the winner with seeds that did not choose it.

    The result depends on the trainings alone, not on their order: a search that was killed and called again
    ends as one that was not.

    Args:
        plan: What to train.
        objective: Trains.
        store: Has the results so far, and takes the new ones.
        workers: Processes that train, see `run_trials`.
        stage: Told of each rung.
        backend: Where to run instead, see `run_trials`.

    Raises:
        TrainingError: A trial lost its worker again and again; the store cannot be used.
    """
    with nullcontext(backend) if backend else local_backend(workers) as chosen:
        return _search(plan, _Trainer(objective, store, chosen, stage or (lambda _: nullcontext())))


def _search(plan: CoefficientPlan, trainer: _Trainer) -> CoefficientResult:
    history: dict[Candidate, list[list[float]]] = {candidate: [] for candidate in plan.first_rung}
    alive = list(plan.candidates)
    for number, epochs in enumerate(plan.rungs):
        group = plan.first_rung if number == 0 else alive
        label = f"rung {number + 1} of {len(plan.rungs)}"
        for candidate, top1 in trainer.train(group, plan.seeds, epochs, label).items():
            history[candidate].append(top1)
        if epochs != plan.rungs[-1]:
            means = {candidate: _mean(history[candidate][-1]) for candidate in alive}
            alive = survivors(means, reduction=plan.reduction)
    winner = max(alive, key=lambda candidate: _mean(history[candidate][-1]))  # of equals, the first
    confirmed = trainer.train(
        dict.fromkeys((winner, plan.paper)), plan.confirm_seeds, plan.rungs[-1], "confirmation"
    )
    return _result(plan, winner, history, confirmed)


@dataclass(frozen=True)
class _Trainer:
    objective: Objective
    store: TrialStore
    backend: Backend
    stage: Stage

    def train(
        self, candidates: Iterable[Candidate], seeds: Sequence[int], epochs: int, label: str
    ) -> dict[Candidate, list[float]]:
        """Top-1 of every candidate, seed by seed."""
        trials = {
            candidate: [Trial(spec=candidate.spec, seed=seed, epochs=epochs) for seed in seeds]
            for candidate in candidates
        }
        everything = [trial for group in trials.values() for trial in group]
        if not everything:
            return {}
        amounts = ((len(trials), "network"), (len(seeds), "seed"), (epochs, "epoch"))
        text = " × ".join(f"{number} {name}{'s' if number > 1 else ''}" for number, name in amounts)
        with self.stage(f"{label}: {text}") as progress:
            scores = run_trials(
                everything,
                self.objective,
                self.store,
                progress=progress,
                backend=self.backend,
            )
        return {candidate: [scores[trial.key].top1 for trial in group] for candidate, group in trials.items()}


def _result(
    plan: CoefficientPlan,
    winner: Candidate,
    history: Mapping[Candidate, Sequence[Sequence[float]]],
    confirmed: Mapping[Candidate, Sequence[float]],
) -> CoefficientResult:
    ranking = [
        Ranked(
            candidate=candidate,
            rung=len(rungs),
            epochs=plan.rungs[len(rungs) - 1],
            top1=confidence_interval(rungs[-1]),
            first_top1=confidence_interval(rungs[0]),
            confirmed=confidence_interval(confirmed[candidate]) if candidate in confirmed else None,
        )
        for candidate, rungs in history.items()
    ]
    # Stable: of equals, the one that stands first in the grid, as when the winner was chosen.
    ranking.sort(key=lambda ranked: (-ranked.rung, -ranked.top1.mean))
    against = None
    if winner in confirmed and winner != plan.paper:
        against = paired_difference(confirmed[winner], confirmed[plan.paper])
    return CoefficientResult(
        plan=plan,
        ranking=tuple(ranking),
        winner=next(ranked for ranked in ranking if ranked.candidate == winner),
        against_paper=against,
    )


def _mean(values: Sequence[float]) -> float:
    return confidence_interval(values).mean
