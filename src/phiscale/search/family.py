"""The whole method in one run: a baseline, its rule, and the family that the rule makes of it.

Tan & Le 2019, sections 3.3 and 4: search a small baseline, search α, β and γ on it, scale it to larger
budgets. Each stage is an argument, so nothing here knows how to search or to train. What a stage came to is
recorded in ``family.json``; a run that is begun again skips what is there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from phiscale.errors import BudgetError, SpecError, TrainingError
from phiscale.scaling.budget import Budget, solve_budget
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import CompoundRule
from phiscale.spec import NetworkSpec
from phiscale.weights.files import write_text

__all__ = ["FAMILY", "Family", "Member", "Stages", "check_budgets", "search_family"]

FAMILY = "family.json"
FORMAT = "phiscale-family-1"


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What does the work. Each may be killed and is then called again with the same arguments.

    Attributes:
        find_baseline: Searches a baseline.
        find_rule: Searches α, β and γ for it.
        train: Trains a network of a name and returns what it measured, as plain values.
    """

    find_baseline: Callable[[], NetworkSpec]
    find_rule: Callable[[NetworkSpec], CompoundRule]
    train: Callable[[str, NetworkSpec], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network of a family.

    Attributes:
        name: ``"s0"`` is the baseline, ``"s1"`` the first budget and so on.
        budget: Multiply-adds that it may have; None for the baseline.
        phi: Its compound coefficient.
        spec: The network.
        measured: What training came to.
    """

    name: str
    budget: float | None
    phi: float
    spec: NetworkSpec
    measured: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A baseline and what a rule made of it.

    Attributes:
        baseline: The network at φ = 0.
        rule: α, β and γ.
        members: The baseline and one network for each budget, trained.
    """

    baseline: NetworkSpec
    rule: CompoundRule
    members: tuple[Member, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "baseline": self.baseline.to_dict(),
            "rule": dataclasses.asdict(self.rule),
            "members": [
                {**_facts(member), "spec": member.spec.to_dict(), "measured": dict(member.measured)}
                for member in self.members
            ],
        }


def check_budgets(budgets: Sequence[float], *, baseline: float) -> None:
    """See that a family can be made, before anything is searched.

    Args:
        budgets: Multiply-adds of the members.
        baseline: Multiply-adds that the baseline may have.

    Raises:
        BudgetError: There is none, they do not grow, or one is below the baseline's.
    """
    ladder = [baseline, *budgets]
    if not budgets or any(after <= before for before, after in pairwise(ladder)):
        raise BudgetError(
            f"the budgets of a family must grow from above the baseline's {baseline:,.0f} multiply-adds; got "
            f"{', '.join(f'{budget:,.0f}' for budget in budgets) or 'none'}"
        )


def search_family(
    stages: Stages,
    budgets: Sequence[float],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    tell: Callable[[str], None] | None = None,
) -> Family:
    """Search a baseline and a rule, scale to every budget, and train.

    Args:
        stages: What does the work.
        budgets: Multiply-adds of the members, growing.
        folder: Has ``family.json``; it must exist.
        settings: All that the stages were set to, as plain values. A run that is begun again must have the
            same.
        tell: Told what begins, a line each.

    Raises:
        BudgetError: No network on the rule that was found fits a budget.
        TrainingError: The folder was begun with other settings, or cannot be read or written.
    """
    tell = tell or (lambda _: None)
    record = _Record(folder / FAMILY, {**settings, "budgets": list(budgets)})
    if "baseline" not in record.stages:
        tell("baseline")
        record.note("baseline", stages.find_baseline().to_dict())
    baseline = record.baseline()
    if "rule" not in record.stages:
        tell("coefficients")
        record.note("rule", dataclasses.asdict(stages.find_rule(baseline)))
    rule = record.rule()
    members = []
    for name, budget, phi, spec in _scaled(baseline, rule, budgets):
        if name not in record.stages:
            tell(f"training {name}")
            record.note(name, dict(stages.train(name, spec)))
        measured = record.stages[name]
        members.append(Member(name=name, budget=budget, phi=phi, spec=spec, measured=measured))
    return Family(baseline=baseline, rule=rule, members=tuple(members))


def _scaled(
    baseline: NetworkSpec, rule: CompoundRule, budgets: Sequence[float]
) -> list[tuple[str, float | None, float, NetworkSpec]]:
    """Name, budget, φ and network of every member; all are solved before one is trained."""
    found: list[tuple[str, float | None, float, NetworkSpec]] = [("s0", None, 0.0, baseline)]
    for number, budget in enumerate(budgets, start=1):
        fit = solve_budget(baseline, Budget(macs=budget), rule=rule)
        name = f"s{number}"
        found.append((name, budget, fit.phi, replace(fit.spec, name=f"{baseline.name}_{name}")))
    return found


def _facts(member: Member) -> dict[str, Any]:
    cost = complexity(member.spec)
    return {
        "name": member.name,
        "budget": member.budget,
        "phi": member.phi,
        "image_size": list(member.spec.image_size),
        "layers": member.spec.num_blocks,
        "macs": cost.macs,
        "params": cost.params,
    }


class _Record:
    """What the stages came to, in a file that is whole at every moment."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = json.loads(json.dumps(settings))
        self.stages: dict[str, Any] = self._read() if path.exists() else {}

    def note(self, stage: str, result: Mapping[str, Any]) -> None:
        """Keep what a stage came to."""
        self.stages[stage] = json.loads(json.dumps(result))
        content = {"format": FORMAT, "settings": self._settings, "stages": self.stages}
        try:
            write_text(self._path, json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise TrainingError(f"cannot write {self._path}: {error.strerror or error}") from None

    def baseline(self) -> NetworkSpec:
        """The recorded baseline."""
        try:
            return NetworkSpec.from_dict(self.stages["baseline"])
        except SpecError as error:
            raise self._damaged(error) from None

    def rule(self) -> CompoundRule:
        """The recorded rule."""
        try:
            return CompoundRule(**self.stages["rule"])
        except (SpecError, TypeError) as error:
            raise self._damaged(error) from None

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            settings, stages = content["settings"], content["stages"]
            if not isinstance(stages, dict) or content["format"] != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(error) from None
        for name in sorted({*settings, *self._settings}):
            if settings.get(name) != self._settings.get(name):
                raise TrainingError(
                    f"the family in {self._path.parent} was begun with {name} {settings.get(name)!r}, and "
                    f"now it is {self._settings.get(name)!r}; give the same again, or choose another folder"
                )
        return stages

    def _damaged(self, error: Exception) -> TrainingError:
        return TrainingError(f"cannot read {self._path}: {error}; remove it, the trainings are kept")
