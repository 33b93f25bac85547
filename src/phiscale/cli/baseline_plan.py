"""The search for a baseline as `search baseline` and `search family` take it from their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phiscale.cli.output import console
from phiscale.cli.searching import Place, print_images, scan_and_plan
from phiscale.cli.units import format_count
from phiscale.errors import BudgetError
from phiscale.scaling.budget import LIMITS, Budget

if TYPE_CHECKING:
    from phiscale.pipeline.baseline import BaselinePlan
    from phiscale.search.baseline import Effort
    from phiscale.spec import NetworkSpec

__all__ = [
    "Exponent",
    "FinalSeeds",
    "Finalists",
    "Generation",
    "Name",
    "ProxyEpochs",
    "ProxyImageSize",
    "Sampler",
    "Template",
    "Trials",
    "make_plan",
    "print_plan",
]

Template = Annotated[
    str,
    typer.Option(
        help="The space is laid around this network: a name from `phiscale models`, scaled to the limits and "
        "the images' size; or a JSON file, taken as it is."
    ),
]
Sampler = Annotated[str, typer.Option(help="nsga2 (evolution), tpe, or random to compare with.")]
Trials = Annotated[int, typer.Option(help="Networks that are trained a little.", min=1)]
Generation = Annotated[
    int, typer.Option(help="Networks that are proposed at once, on the scores of those before.", min=2)
]
ProxyEpochs = Annotated[
    int | None, typer.Option(help="Epochs of a short training; by default a fifth of --epochs.", min=1)
]
ProxyImageSize = Annotated[
    int | None,
    typer.Option(help="Image side of a short training; by default three quarters of the whole.", min=8),
]
Finalists = Annotated[
    int, typer.Option(help="Networks of the front that are trained in full, at most.", min=1)
]
FinalSeeds = Annotated[int, typer.Option("--seeds", help="Full trainings of each finalist.", min=1)]
Exponent = Annotated[
    float, typer.Option(help="w of the reward, accuracy × (cost / target)^w; 0 counts accuracy alone.")
]
Name = Annotated[str, typer.Option(help="What to call the network that is found.")]


def make_plan(
    images: str,
    *,
    limits: Mapping[str, float | None],
    effort: Mapping[str, Any],
    seeds: int,
    seed: int,
    out: Path,
    place: Place,
    quiet: bool,
    **settings: Any,
) -> tuple[BaselinePlan, Effort]:
    """The search that the options ask for.

    Raises:
        BudgetError: Neither multiply-adds nor milliseconds are limited.
        SpecError: The template cannot be searched about.
    """
    from phiscale.pipeline.baseline import default_effort, plan_baseline

    given = {name: value for name, value in limits.items() if value is not None}
    if not {"macs", "latency_ms"} & given.keys():
        raise BudgetError("say what a network may cost: --macs 20M or --latency-ms 3")
    timed = "latency_ms" in given
    plan = scan_and_plan(
        plan_baseline,
        images,
        out=out,
        place=place,
        quiet=quiet,
        limits=Budget(**given),
        cost="latency_ms" if timed else "macs",
        measure=_milliseconds(show=not quiet) if timed else None,
        **settings,
    )
    return plan, default_effort(plan, **effort, seed=seed, final_seeds=tuple(range(seed, seed + seeds)))


def _milliseconds(*, show: bool) -> Callable[[NetworkSpec], float]:
    """Median of one image on this machine, in the engine that is fastest here; remembered on disk."""
    from phiscale.cli.timing import make_meter

    meter = make_meter(None, "fp32", None, 1, show=show)
    return lambda spec: meter([spec])[0].median_ms


def print_plan(plan: BaselinePlan, effort: Effort) -> None:
    """Print the images, what was chosen, the template and the space."""
    from phiscale.scaling.complexity import complexity

    out, template = console(), plan.space.template
    print_images(plan.trials.objective.source, plan.notes)
    cost = complexity(template)
    out.print(
        f"template {template.name}: {format_count(cost.macs)} multiply-adds, {format_count(cost.params)} "
        f"parameters, {template.image_size[0]}×{template.image_size[1]} px"
    )
    limits = ", ".join(
        f"at most {format_count(limit)} {LIMITS[name]}" for name, limit in plan.goal.limits.limits().items()
    )
    out.print(f"space    {plan.space.size:.2g} networks; {limits}", soft_wrap=True)
    side = effort.proxy(template).spec.image_size
    out.print(
        f"effort   {_many(effort.trials, 'network')} for {_many(effort.proxy_epochs or 0, 'epoch')} at "
        f"{side[0]}×{side[1]} px, then at most {effort.finalists} and the template in full, "
        f"{_many(len(effort.final_seeds), 'seed')} each",
        soft_wrap=True,
    )


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
