"""The paper's comparisons for any baseline: one dimension scaled against all three, at equal multiply-adds.

Figure 3 sweeps one dimension, Figure 8 adds the compound rule, and Table 7 is its dearest level: the three
share their networks. Figure 4 sweeps width at four depths and resolutions. Table 3 repeats Table 7 for
other families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from phiscale.errors import BudgetError, SpecError
from phiscale.families import get_spec
from phiscale.scaling.budget import Budget, BudgetFit, solve_budget
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES, CompoundRule, Scaling
from phiscale.scaling.small_images import for_image_size
from phiscale.search.arms import Comparison, Direction, match_macs
from phiscale.search.objective import Objective, Score, Trial
from phiscale.search.runner import Backend, Progress, run_trials
from phiscale.search.statistics import Interval, confidence_interval
from phiscale.search.store import TrialStore
from phiscale.search.study_statistics import Spread, detectable_difference, difference, pool
from phiscale.spec import NetworkSpec

__all__ = [
    "COMPOUND",
    "FAMILY_BASELINES",
    "TABLES",
    "Analysis",
    "Measured",
    "Part",
    "StudyPlan",
    "StudyResult",
    "Table",
    "baselines",
    "family_baseline",
    "missing_arms",
    "plan_study",
    "run_study",
]

Table = Literal["table7", "figure3", "figure4", "figure8", "table3"]
TABLES: tuple[Table, ...] = get_args(Table)
FAMILY_BASELINES = ("mobilenet_v1", "mobilenet_v2", "resnet50")
COMPOUND = "compound"
SINGLE = ("depth", "width", "resolution")
# Figure 4 of the paper: d and r of the networks whose width is swept.
CURVES = ((1.0, 1.0), (1.0, 1.3), (2.0, 1.0), (2.0, 1.3))
NARROWEST_PHI = -2.0  # half the channels, so that all four curves meet at every cost
LEVEL_EXPONENTS = (0.5, 0.75, 1.0)
NARROWEST_FAMILY = 0.25


@dataclass(frozen=True, kw_only=True)
class Part:
    """One comparison and where it belongs.

    Attributes:
        kind: ``"levels"`` (Figures 3 and 8, Table 7), ``"widths"`` (Figure 4) or ``"families"`` (Table 3).
        growth: Multiply-adds that were asked for, as a multiple of the baseline's.
        comparison: The networks.
    """

    kind: Literal["levels", "widths", "families"]
    growth: float
    comparison: Comparison

    @property
    def title(self) -> str:
        """What tables call it."""
        name = self.comparison.baseline.name
        swept = ", width swept" if self.kind == "widths" else ""
        return f"{name}{swept}, × {self.counted_growth:.3g}"

    @property
    def counted_growth(self) -> float:
        """The multiply-adds that its networks share, as a multiple of the baseline's."""
        return self.comparison.macs / complexity(self.comparison.baseline).macs


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The networks of a study.

    Attributes:
        baseline: The network at φ = 0.
        tables: What was asked for.
        rule: The compound rule.
        parts: All comparisons, each kind in the order of its cost.
        skipped: Comparisons that cannot be made, and why, a sentence each.
    """

    baseline: NetworkSpec
    tables: tuple[Table, ...]
    rule: CompoundRule
    parts: tuple[Part, ...]
    skipped: tuple[str, ...]

    def of_kind(self, kind: str) -> tuple[Part, ...]:
        """The comparisons of one kind."""
        return tuple(part for part in self.parts if part.kind == kind)

    @cached_property
    def networks(self) -> tuple[NetworkSpec, ...]:
        """Every network to train, baselines first, each once."""
        everything = [self.baseline, *baselines(self.parts)]
        everything += [arm.spec for part in self.parts for arm in part.comparison.arms]
        found: dict[str, NetworkSpec] = {}
        for spec in everything:
            found.setdefault(_key(spec), spec)
        return tuple(found.values())

    def trials(self, seeds: Sequence[int], epochs: int | None = None) -> list[Trial]:
        """Every training, one seed of all networks before the next seed."""
        return [Trial(spec=spec, seed=seed, epochs=epochs) for seed in seeds for spec in self.networks]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A network with what its trainings gave.

    Attributes:
        spec: The network.
        scores: One for each seed, in the order of the seeds.
        latency_ms: Measured time of one inference in milliseconds, where it was measured.
    """

    spec: NetworkSpec
    scores: tuple[Score, ...]
    latency_ms: float | None = None

    @property
    def values(self) -> list[float]:
        """Top-1 of each seed, in [0, 1]."""
        return [score.top1 for score in self.scores]

    @property
    def top1(self) -> Interval:
        """Mean top-1 with its 95 % interval."""
        return confidence_interval(self.values)

    @property
    def epoch_seconds(self) -> float:
        """Mean time of an epoch, in seconds."""
        return sum(score.train_seconds for score in self.scores) / sum(score.epochs for score in self.scores)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What the seeds say of one comparison.

    Attributes:
        spread: Between seeds, pooled over the arms; None with one seed.
        detectable: The smallest difference of two arms that would probably have been seen (80 % power);
            None where no two seeds differ.
        against: Each arm's top-1 less that of the compound arm, for the other arms; empty without one.
            Without an interval where no two seeds differ.
    """

    spread: Spread | None
    detectable: float | None
    against: Mapping[str, Interval]


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A study with its scores.

    Attributes:
        plan: The networks.
        seeds: Seeds of the trainings.
        epochs: How long each was trained; None is the recipe's own number.
        measured: What each network gave, by `Trial.key` of seed 0.
    """

    plan: StudyPlan
    seeds: tuple[int, ...]
    epochs: int | None
    measured: Mapping[str, Measured]

    def of(self, spec: NetworkSpec) -> Measured:
        """What a network of the plan gave."""
        return self.measured[_key(spec)]

    def analyse(self, comparison: Comparison) -> Analysis:
        """Compare the arms of one comparison."""
        values = {arm.name: self.of(arm.spec).values for arm in comparison.arms}
        spread = pool(list(values.values()))
        # Equal seeds everywhere say that the validation images are too few, not that there is no chance.
        usable = spread if spread and spread.std > 0 else None
        detectable = detectable_difference(usable, len(self.seeds)) if usable else None
        compound = values.get(COMPOUND)
        against = (
            {}
            if compound is None
            else {name: difference(own, compound, usable) for name, own in values.items() if name != COMPOUND}
        )
        return Analysis(spread=spread, detectable=detectable, against=against)

    def with_latencies(self, latencies: Mapping[str, float]) -> StudyResult:
        """The result with a measured latency for each key of `measured`, in milliseconds."""
        measured = {
            key: replace(one, latency_ms=latencies.get(key, one.latency_ms))
            for key, one in self.measured.items()
        }
        return replace(self, measured=measured)


def _key(spec: NetworkSpec) -> str:
    return Trial(spec=spec, seed=0).key


# ------------------------------------------------------------------------------------------- plan


def plan_study(
    baseline: NetworkSpec,
    *,
    tables: Sequence[str] = TABLES,
    growth: float | None = None,
    macs: float | None = None,
    levels: Sequence[float] | None = None,
    rule: CompoundRule = RULES["paper"],
    families: Sequence[str] = FAMILY_BASELINES,
    full_families: bool = False,
) -> StudyPlan:
    """Choose the networks of a study. Nothing is trained.

    Args:
        baseline: The network to scale, with the classes and channels of the data.
        tables: Any of `TABLES`.
        growth: Multiply-adds of the dearest level as a multiple of the baseline's; 4 by default.
        macs: The same as a number of multiply-adds; one of the two.
        levels: The levels of the figures, as multiples of the baseline's multiply-adds; the last one is
            the budget of the tables. By default growth^½, growth^¾ and growth.
        rule: The compound rule.
        families: Networks by name, of Table 3.
        full_families: Whether they keep their published width; otherwise they are made narrower until they
            cost no more than the baseline.

    Raises:
        BudgetError: The growth is not above 1, or no comparison can be made.
        SpecError: A table or a family has no such name.
    """
    wanted = _known_tables(tables)
    growths = _levels(baseline, growth, macs, levels)
    directions = _level_directions(wanted, rule)
    shown = growths if {"figure3", "figure8"} & set(wanted) else growths[-1:]
    makers = [_maker("levels", baseline, directions, level) for level in shown if directions]
    if "figure4" in wanted:
        makers += [_maker("widths", baseline, _width_directions(), level) for level in growths]
    if "table3" in wanted:
        makers += [
            _family_maker(get_spec(name), baseline, full_families, _all_directions(rule), growths[-1])
            for name in families
        ]
    parts: dict[tuple[str, ...], Part] = {}
    skipped: list[str] = []
    for make in makers:
        try:
            part = make()
        except BudgetError as error:
            skipped.append(str(error))
            continue
        # Where rounding leaves few networks, two levels may come to the same ones.
        parts.setdefault((part.kind, *(_key(arm.spec) for arm in part.comparison.arms)), part)
    if not parts:
        raise BudgetError(skipped[0])
    return StudyPlan(
        baseline=baseline, tables=wanted, rule=rule, parts=tuple(parts.values()), skipped=tuple(skipped)
    )


def _known_tables(tables: Sequence[str]) -> tuple[Table, ...]:
    unknown = sorted(set(tables) - set(TABLES))
    if unknown or not tables:
        raise SpecError(f"no table is named {unknown[0] if unknown else ''!r}; known: {', '.join(TABLES)}")
    return tuple(table for table in TABLES if table in tables)


def _levels(
    baseline: NetworkSpec, growth: float | None, macs: float | None, levels: Sequence[float] | None
) -> tuple[float, ...]:
    if sum(given is not None for given in (growth, macs, levels)) > 1:
        raise BudgetError("give one of growth, macs and levels")
    if levels is None:
        own = complexity(baseline).macs
        top = macs / own if macs is not None else 4.0 if growth is None else growth
        levels = [top**exponent for exponent in LEVEL_EXPONENTS] if top > 1 else [top]
    found = tuple(sorted(levels))
    if not found or found[0] <= 1:
        raise BudgetError(
            f"a study scales up, so its multiply-adds must be more than the baseline's "
            f"{complexity(baseline).macs:,}; got {', '.join(f'{level:.3g}' for level in found)} times that"
        )
    return found


def _all_directions(rule: CompoundRule) -> list[Direction]:
    singles = [Direction(name=name, rule=RULES[name]) for name in SINGLE]
    return [*singles, Direction(name=COMPOUND, rule=rule), Direction(name="dWr", rule=RULES["dWr"])]


def _level_directions(tables: Sequence[Table], rule: CompoundRule) -> list[Direction]:
    if {"table7", "figure8"} & set(tables):
        return _all_directions(rule)
    return _all_directions(rule)[:3] if "figure3" in tables else []


def _width_directions() -> list[Direction]:
    return [
        Direction(
            name=f"d={depth:g}, r={resolution:g}",
            rule=RULES["width"],
            start=Scaling(depth=depth, resolution=resolution),
            lowest_phi=NARROWEST_PHI,
        )
        for depth, resolution in CURVES
    ]


def _maker(
    kind: Literal["levels", "widths", "families"],
    baseline: NetworkSpec,
    directions: Sequence[Direction],
    growth: float,
) -> Callable[[], Part]:
    def make() -> Part:
        comparison = match_macs(baseline, directions, growth * complexity(baseline).macs)
        return Part(kind=kind, growth=growth, comparison=comparison)

    return make


def _family_maker(
    network: NetworkSpec, like: NetworkSpec, full: bool, directions: Sequence[Direction], growth: float
) -> Callable[[], Part]:
    return lambda: _maker("families", family_baseline(network, like, full=full), directions, growth)()


def family_baseline(network: NetworkSpec, like: NetworkSpec, *, full: bool = False) -> NetworkSpec:
    """A network of another family for the data of a study.

    It takes the classes, channels and image size of `like`, strides low enough for that size, and, unless
    `full`, as many channels as cost no more than `like`. Where less than a quarter of the channels would be
    left, its strides stay higher.

    Args:
        network: As published.
        like: The baseline of the study.
        full: Whether it keeps its width.

    Raises:
        BudgetError: Even 8 channels in each stage cost more.
    """
    limit, own_map = complexity(like).macs, max(1, min(like.image_size) // like.output_stride)
    found: list[BudgetFit] = []
    failed: BudgetError | None = None
    for smallest_map in (own_map, *(side for side in (4, 3, 2) if side < own_map)):
        fitted = for_image_size(network, like.image_size, min_map=smallest_map)
        fitted = replace(fitted, num_classes=like.num_classes, in_channels=like.in_channels)
        if full or complexity(fitted).macs <= limit:
            return fitted
        try:
            found.append(solve_budget(fitted, Budget(macs=limit), rule=RULES["width"]))
        except BudgetError as error:
            failed = error
            continue
        if found[-1].scaling.width >= NARROWEST_FAMILY:
            break
    if not found:
        raise BudgetError(f"{network.name} cannot be made as small as {like.name}: {failed}")
    narrow = max(found, key=lambda fit: fit.scaling.width)
    return replace(narrow.spec, name=f"{network.name}_w{narrow.scaling.width:.3g}")


# -------------------------------------------------------------------------------------------- run


def run_study(
    plan: StudyPlan,
    objective: Objective,
    store: TrialStore,
    *,
    seeds: Sequence[int],
    epochs: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    backend: Backend | None = None,
) -> StudyResult:
    """Train every network of a plan with every seed, or go on with it.

    Args:
        plan: The networks.
        objective: Trains.
        store: Has the results so far, and takes the new ones.
        seeds: Seeds of the trainings, each once; two or more give intervals.
        epochs: How long; None is the recipe's own number.
        workers: Processes that train, each with one thread.
        progress: Told how many trainings are done, and of all.
        backend: Where to run instead of on this machine.

    Raises:
        ValueError: There is no seed, or one twice.
        TrainingError: A trial lost its worker again and again; the store cannot be used.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be given, each once; got {list(seeds)}")
    scores = run_trials(
        plan.trials(seeds, epochs), objective, store, workers=workers, progress=progress, backend=backend
    )
    measured = {
        _key(spec): Measured(
            spec=spec,
            scores=tuple(scores[Trial(spec=spec, seed=seed, epochs=epochs).key] for seed in seeds),
        )
        for spec in plan.networks
    }
    return StudyResult(plan=plan, seeds=tuple(seeds), epochs=epochs, measured=measured)


def baselines(parts: Sequence[Part]) -> Iterator[NetworkSpec]:
    """The baseline of each comparison, each once."""
    yield from {_key(part.comparison.baseline): part.comparison.baseline for part in parts}.values()


def missing_arms(plan: StudyPlan) -> list[str]:
    """What a plan lacks, a sentence each."""
    found = [f"{part.title}: {reason}" for part in plan.parts for reason in part.comparison.missing.values()]
    return [*found, *plan.skipped]
