"""The whole method on images: baseline, coefficients, scaling and training, in one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phiscale.pipeline.baseline import BaselinePlan, run_baseline
from phiscale.pipeline.coefficients import run_coefficients, run_folder
from phiscale.pipeline.fit import run
from phiscale.pipeline.plan import FitPlan, read_plan
from phiscale.pipeline.trial import TrialPlan
from phiscale.scaling.compound import CompoundRule
from phiscale.search.baseline import Effort
from phiscale.search.baseline_report import found_spec
from phiscale.search.coefficients import Stage, plan_coefficients
from phiscale.search.family import Family, Stages, check_budgets, search_family
from phiscale.search.objective import Objective
from phiscale.search.runner import Backend
from phiscale.spec import NetworkSpec
from phiscale.training import checkpoints

__all__ = ["FamilyRun", "run_family"]


@dataclass(frozen=True, kw_only=True)
class FamilyRun:
    """What a family is made with.

    Attributes:
        plan: Images, recipe, space and goal of the baseline search.
        effort: How much the baseline search trains.
        coefficients: Arguments of `plan_coefficients`, but for the baseline and the epochs.
        budgets: Multiply-adds of the members, growing.
        name: What to call the baseline.
    """

    plan: BaselinePlan
    effort: Effort
    coefficients: Mapping[str, Any]
    budgets: Sequence[float]
    name: str = "searched_baseline"

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as plain values."""
        goal, effort = self.plan.goal, self.effort
        return {
            **self.plan.trials.objective.identity(),
            "template": self.plan.space.template.to_dict(),
            "limits": goal.limits.limits(),
            "cost": goal.cost,
            "exponent": goal.exponent,
            **{f"search_{name}": value for name, value in vars(effort).items()},
            **{f"coefficients_{name}": value for name, value in self.coefficients.items()},
            "name": self.name,
        }


def run_family(
    family: FamilyRun,
    out: str | Path,
    *,
    storage: str | None = None,
    study: str = "phiscale",
    workers: int = 1,
    stage: Stage | None = None,
    tell: Callable[[str], None] | None = None,
    progress: bool = True,
    objective: Objective | None = None,
    backend: Backend | None = None,
) -> Family:
    """Make a family, or go on with it.

    `out` then holds ``family.json``, the folders ``baseline`` and ``coefficients`` of the two searches, and a
    model directory for each member, ``s0``, ``s1`` and so on.

    Args:
        family: What to do.
        out: The folder.
        storage: A database as URL instead of the files in `out`.
        study: Begins the names of the two searches' studies in the database.
        workers: Processes that train in the searches, each with one thread. The members are trained one
            after the other, with all threads.
        stage: Told of each part of the searches.
        tell: Told what begins.
        progress: Whether to draw bars while the members are trained.
        objective: What trains in the searches instead of the plan's own.
        backend: Where to run the searches instead of in processes of this machine.

    Raises:
        BudgetError: The budgets do not grow from the baseline's; nothing fits one of them.
        TrainingError: Another search runs in `out`, it was begun with other settings, or a training failed.
        KeyboardInterrupt: Ctrl-C came; the same call goes on.
        MissingDependencyError: Optuna, scipy or matplotlib is not installed.
    """
    folder, trials = Path(out), family.plan.trials
    check_budgets(family.budgets, baseline=family.plan.goal.limits.macs or 0.0)
    shared: dict[str, Any] = {
        "storage": storage,
        "workers": workers,
        "stage": stage,
        "objective": objective,
        "backend": backend,
    }

    def find_baseline() -> NetworkSpec:
        search = run_baseline(
            family.plan,
            folder / "baseline",
            effort=family.effort,
            name=family.name,
            study=f"{study}-baseline",
            **shared,
        )
        return found_spec(search, family.name)

    def find_rule(baseline: NetworkSpec) -> CompoundRule:
        coefficients = plan_coefficients(
            baseline, epochs=trials.objective.recipe.epochs, **family.coefficients
        )
        of_baseline = replace(trials, baseline=baseline)
        found = run_coefficients(
            coefficients, of_baseline, folder / "coefficients", study=f"{study}-coefficients", **shared
        )
        return found.rule

    def train(name: str, spec: NetworkSpec) -> dict[str, Any]:
        return _train(trials, spec, folder / name, progress=progress)

    with run_folder(folder):
        stages = Stages(find_baseline=find_baseline, find_rule=find_rule, train=train)
        return search_family(stages, family.budgets, folder, settings=family.settings(), tell=tell)


def _train(trials: TrialPlan, spec: NetworkSpec, directory: Path, *, progress: bool) -> dict[str, Any]:
    """Train a member as it is, or go on with its training."""
    resume = checkpoints.exist(directory)
    plan = read_plan(directory) if resume else _plan_for(trials, spec)
    result = run(plan, directory, resume=resume, progress=progress)
    if result.training.interrupted:
        raise KeyboardInterrupt
    assert result.evaluation is not None  # a search has val images
    return {
        "top1": result.evaluation.top1,
        "images": len(result.evaluation.labels),
        "split": result.evaluation.data["split"],
        "epochs": len(result.training.history),
        "train_seconds": sum(record.seconds for record in result.training.history),
        "directory": directory.name,
    }


def _plan_for(trials: TrialPlan, spec: NetworkSpec) -> FitPlan:
    """The plan of the searches for another network, which is trained at its own image size."""
    return replace(
        trials.fit,
        spec=trials.fit.recipe.apply_to(spec),
        preprocess=trials.objective.preprocess_for(spec),
        notes=(f"a member of a family: {spec.name}",),
    )
