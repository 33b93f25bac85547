"""The search for a baseline on images: planned, run, and written into a folder that can be gone on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from phiscale.errors import require
from phiscale.evaluation.plots import save_png_and_svg
from phiscale.families import get_spec
from phiscale.pipeline.coefficients import TRIALS, run_folder
from phiscale.pipeline.forecast import seconds_per_epoch
from phiscale.pipeline.plan import choose_network
from phiscale.pipeline.trial import TrialPlan, one_thread, plan_trials
from phiscale.scaling.budget import Budget, solve_budget
from phiscale.scaling.compound import RULES
from phiscale.search.baseline import BaselineSearch, Effort, search_baseline
from phiscale.search.baseline_report import draw_search, write_search
from phiscale.search.coefficients import Stage
from phiscale.search.objective import Objective
from phiscale.search.reward import EXPONENT, CostName, Goal
from phiscale.search.runner import Backend, local_backend, run_trials
from phiscale.search.space import SearchSpace
from phiscale.search.store import TrialStore
from phiscale.spec import NetworkSpec

__all__ = [
    "BaselinePlan",
    "default_effort",
    "forecast_seconds",
    "plan_baseline",
    "run_baseline",
    "write_results",
]

# Of the epochs and of the image side of a full training.
PROXY_EPOCHS, PROXY_SIDE, LEAST_PROXY_SIDE = 0.2, 0.75, 16


@dataclass(frozen=True, kw_only=True)
class BaselinePlan:
    """What a search is going to do, decided before anything is trained.

    Attributes:
        trials: Images and recipe; its baseline is the template of the space.
        space: Where to look.
        goal: Limits, cost and reward.
        notes: What was chosen and why, a sentence each.
    """

    trials: TrialPlan
    space: SearchSpace
    goal: Goal
    notes: tuple[str, ...]


def plan_baseline(
    images: str | Path,
    *,
    limits: Budget,
    template: str | Path | NetworkSpec = "efficientnet_b0",
    cost: CostName = "macs",
    exponent: float = EXPONENT,
    measure: Callable[[NetworkSpec], float] | None = None,
    image_size: int | tuple[int, int] | None = None,
    **settings: Any,
) -> BaselinePlan:
    """Scan images, and lay the space around the largest network within the limits.

    Args:
        images: As for `phiscale.fit`.
        limits: What a network may need at most.
        template: A name, whose network is fitted to the images' size and scaled to the limits as by
            `phiscale.fit`; or a JSON file or spec, which is taken as it is.
        cost: The limit that is the target of the reward.
        exponent: The w of the reward.
        measure: Gives the latency of a network in milliseconds; needed with a limit on it.
        image_size: Side or (height, width) in pixels.
        **settings: The other arguments of `plan_trials`.

    Raises:
        DataError: The images cannot be used.
        BudgetError: There is no limit on `cost`; no network of the template's kind is within the limits.
        SpecError: The template has blocks that are not searched.
        RecipeError: The recipe is not valid.
    """
    goal = Goal(limits=limits, cost=cost, exponent=exponent, measure=measure)
    trials = plan_trials(images, baseline=template, image_size=image_size, **settings)
    as_it_is = isinstance(template, NetworkSpec) or str(template).endswith(".json")
    spec, notes = trials.baseline, list(trials.notes)
    if not as_it_is:
        assert trials.fit.report is not None
        wanted = trials.objective.for_data(get_spec(template))
        solve = partial(solve_budget, budget=limits, measure=measure)
        notes = [note for note in notes if not note.startswith(("strides lowered", "the images are about"))]
        spec, _, _ = choose_network(wanted, solve, RULES["paper"], image_size, trials.fit.report, notes)
    spec = replace(spec, name=get_spec(template).name)
    trials = replace(trials, baseline=spec, fit=replace(trials.fit, spec=spec))
    return BaselinePlan(trials=trials, space=SearchSpace.around(spec), goal=goal, notes=tuple(notes))


def default_effort(plan: BaselinePlan, **changes: Any) -> Effort:
    """An effort whose proxies have a fifth of the recipe's epochs and three quarters of the image side.

    Args:
        plan: Images, recipe and template.
        **changes: Fields of `Effort`; None leaves the default.

    Raises:
        SpecError: A field is not valid.
    """
    template = plan.space.template
    least = max(LEAST_PROXY_SIDE, template.output_stride)
    side = tuple(max(min(side, least), round(PROXY_SIDE * side)) for side in template.image_size)
    defaults: dict[str, Any] = {
        "proxy_epochs": max(1, round(PROXY_EPOCHS * plan.trials.objective.recipe.epochs)),
        "proxy_image_size": side,
    }
    return Effort(**defaults | {name: value for name, value in changes.items() if value is not None})


def run_baseline(
    plan: BaselinePlan,
    out: str | Path,
    *,
    effort: Effort,
    name: str = "searched_baseline",
    storage: str | None = None,
    study: str = "phiscale",
    workers: int = 1,
    stage: Stage | None = None,
    objective: Objective | None = None,
    backend: Backend | None = None,
) -> BaselineSearch:
    """Run a search, or go on with it, and write what it came to.

    `out` then holds ``baseline.json``, which `scale`, `fit` and `search coefficients` take,
    ``candidates.csv``, ``search.json``, ``pareto.png`` and ``pareto.svg``, beside the recorded trainings in
    ``trials.db``.

    Args:
        plan: Where and what for.
        out: The folder.
        effort: How much to train.
        name: What to call the network that is found.
        storage: A database as URL instead of the file in `out`.
        study: Name of the study in the database.
        workers: Processes that train, each with one thread.
        stage: Told of each generation.
        objective: What trains instead of the plan's own.
        backend: Where to run instead of in processes of this machine.

    Raises:
        BudgetError: No network of the space is within the limits.
        TrainingError: Another search runs in `out`, or it was begun with other images or another recipe; a
            worker died again and again; something cannot be written.
        MissingDependencyError: Optuna, scipy or matplotlib is not installed.
    """
    # A search may take a night: what is missing for its last step is told now.
    require("scipy.stats", extra="search")
    require("matplotlib", extra="plot")
    folder, images = Path(out), plan.trials.objective
    with run_folder(folder):
        with TrialStore(storage or folder / TRIALS, study=study, settings=images.identity()) as store:
            images.prepare()
            with local_backend(workers) as local:
                train = partial(
                    run_trials, objective=objective or images, store=store, backend=backend or local
                )
                search = search_baseline(plan.space, plan.goal, train, effort=effort, stage=stage)
        write_results(search, folder, name=name)
    return search


def write_results(search: BaselineSearch, folder: Path, *, name: str = "searched_baseline") -> None:
    """Write all files of `run_baseline` but for the trainings.

    Args:
        search: What was found.
        folder: Where to; it must exist.
        name: What to call the network.

    Raises:
        TrainingError: A file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    write_search(search, folder, name=name)
    save_png_and_svg(folder / "pareto", partial(draw_search, search=search), width=9, height=4)


def forecast_seconds(plan: BaselinePlan, effort: Effort, *, workers: int = 1) -> float:
    """Estimate how long a search takes, with nothing recorded yet.

    The template is timed for a few steps, as proxy and in full. It is one of the largest networks of the
    space, so this is rather too long.

    Args:
        plan: Images, recipe and space.
        effort: How much is trained.
        workers: Processes that train, each taken to have a core of its own.

    Returns:
        Seconds.
    """
    template, recipe = plan.space.template, plan.trials.objective.recipe
    proxy = effort.proxy(template)
    with one_thread():
        short, full = (
            seconds_per_epoch(replace(plan.trials.fit, spec=spec)) for spec in (proxy.spec, template)
        )
    finals = (effort.finalists + 1) * len(effort.final_seeds) * (effort.final_epochs or recipe.epochs)
    return (effort.trials * (effort.proxy_epochs or recipe.epochs) * short + finals * full) / workers
