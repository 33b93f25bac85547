"""`phiscale search coefficients`: the α, β and γ that serve a baseline best on some images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phiscale.cli import options
from phiscale.cli.output import console, print_json, print_table
from phiscale.cli.searching import (
    Place,
    format_interval,
    print_forecast,
    print_images,
    scan_and_plan,
    stage,
    stoppable,
)
from phiscale.cli.units import format_count

if TYPE_CHECKING:
    from phiscale.pipeline.trial import TrialPlan
    from phiscale.search.coefficients import CoefficientPlan, CoefficientResult
    from phiscale.search.grid import Candidate
    from phiscale.search.statistics import Interval


def coefficients(
    images: options.Images,
    baseline: options.Baseline = "efficientnet_b0",
    out: options.RunFolder = Path("coefficients"),
    step: options.GridStep = "0.05",
    tolerance: Annotated[
        str, typer.Option(metavar="NUMBER", help="Largest distance of α·β²·γ² from --growth.")
    ] = "0.1",
    growth: Annotated[float, typer.Option(help="Wanted growth of the multiply-adds for φ = 1.")] = 2.0,
    cost_tolerance: Annotated[
        float, typer.Option(help="Largest distance of the counted growth from --growth, as a share of it.")
    ] = 0.2,
    seeds: Annotated[int, typer.Option(help="Trainings of each network in each rung.", min=1)] = 3,
    confirm_seeds: Annotated[
        int, typer.Option(help="Further trainings of the winner and of the paper's rule.", min=0)
    ] = 5,
    reduction: Annotated[
        int, typer.Option(help="Of so many networks, one goes on to the next rung.", min=2)
    ] = 3,
    min_epochs: options.MinEpochs = 3,
    image_size: options.ImageSize = None,
    resize: options.Resize = "crop",
    recipe: options.RecipeName = "fast",
    settings: options.Settings = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    val_fraction: options.ValFraction = 0.2,
    train_images: options.TrainImages = None,
    split_file: options.SplitFile = None,
    workers: options.Workers = None,
    ray: options.Ray = None,
    cpus_per_trial: options.CpusPerTrial = 1,
    gpus_per_trial: options.GpusPerTrial = 0.0,
    storage: options.Storage = None,
    study: options.StudyName = "phiscale",
    dry_run: options.DryRun = False,
    json: options.JsonOutput = False,
) -> None:
    """Find the α, β and γ that serve a baseline best on your images.

    Trains the networks of a small grid at φ = 1 that cost what is wanted, the better ones longer, and
    confirms the winner with seeds that did not choose it. The same command goes on with a search that was
    stopped at any moment.
    """
    from phiscale.pipeline.coefficients import run_coefficients
    from phiscale.pipeline.trial import plan_trials
    from phiscale.search.coefficients import plan_coefficients

    place = Place(workers=workers, ray=ray, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial)
    trials = scan_and_plan(
        plan_trials,
        images,
        out=out,
        place=place,
        quiet=json,
        baseline=baseline,
        recipe=recipe,
        overrides=options.make_overrides(
            settings, {"epochs": epochs, "batch_size": batch_size, "seed": seed}
        ),
        image_size=image_size,
        resize=resize,
        val_fraction=val_fraction,
        train_images=train_images,
        split_file=split_file,
    )
    plan = plan_coefficients(
        trials.baseline,
        epochs=trials.objective.recipe.epochs,
        step=step,
        tolerance=tolerance,
        growth=growth,
        cost_tolerance=cost_tolerance,
        seeds=range(seed, seed + seeds),
        confirm_seeds=confirm_seeds,
        reduction=reduction,
        min_epochs=min_epochs,
    )
    with stoppable(), place.open() as (backend, at_a_time):
        if dry_run:
            _show_plan(plan, trials, at_a_time, as_json=json)
            return
        if not json:
            _print_summary(plan, trials)
        result = run_coefficients(
            plan,
            trials,
            out,
            storage=storage,
            study=study,
            workers=at_a_time,
            stage=stage,
            backend=backend,
        )
    if json:
        from phiscale.search.coefficients_report import result_to_dict

        print_json({"directory": str(out), **result_to_dict(result)})
    else:
        _print_result(result, out)


def _show_plan(plan: CoefficientPlan, trials: TrialPlan, workers: int, *, as_json: bool) -> None:
    from phiscale.pipeline.coefficients import forecast_seconds
    from phiscale.search.coefficients_report import plan_to_dict

    seconds = forecast_seconds(plan, trials, workers=workers)
    if as_json:
        print_json({**plan_to_dict(plan), "workers": workers, "forecast_seconds": seconds})
        return
    _print_summary(plan, trials)
    print_table(
        ("α,β,γ", "rules", "layers", "image", "parameters", "multiply-adds", "growth", ""),
        [_cells(candidate, plan) for candidate in plan.first_rung],
    )
    for number, (trainings, epochs) in enumerate(plan.trainings(), start=1):
        name = f"rung {number}" if number <= len(plan.rungs) else "confirmation"
        console().print(
            f"{name:13}{trainings} trainings, {epochs} {'epoch' if epochs == 1 else 'epochs'} each"
        )
    print_forecast(seconds, workers, width=13)


def _print_summary(plan: CoefficientPlan, trials: TrialPlan) -> None:
    out = console()
    print_images(trials.objective.source, trials.notes)
    side = plan.baseline.image_size
    out.print(
        f"baseline {plan.baseline.name}: {format_count(plan.baseline_macs)} multiply-adds, "
        f"{side[0]}×{side[1]} px"
    )
    networks = len(plan.candidates) + len(plan.dropped) + (plan.paper not in plan.candidates)
    out.print(
        f"grid     points and the paper's rule: {plan.grid_points} + 1; networks: {networks}; "
        f"of those cost about {plan.growth:g} times the baseline: {len(plan.candidates)}",
        soft_wrap=True,
    )
    if plan.paper not in plan.candidates:
        out.print(
            f"note     the paper's rule costs {plan.paper.macs_growth:.2f} times the baseline: it is trained "
            "for comparison and cannot win",
            soft_wrap=True,
        )


def _cells(candidate: Candidate, plan: CoefficientPlan) -> tuple[str, ...]:
    spec, rule, cost = candidate.spec, candidate.rule, candidate.complexity
    names = [name for name, is_so in (("paper's", candidate.is_paper),) if is_so]
    if candidate not in plan.candidates:
        names.append("off the target")
    return (
        f"{rule.alpha:g},{rule.beta:g},{rule.gamma:g}",
        str(len(candidate.rules)),
        str(spec.num_blocks),
        f"{spec.image_size[0]}×{spec.image_size[1]}",
        format_count(cost.params),
        format_count(cost.macs),
        f"{candidate.macs_growth:.2f}",
        ", ".join(names),
    )


def _print_result(result: CoefficientResult, out: Path) -> None:
    rows = []
    for place, ranked in enumerate(result.ranking, start=1):
        cells = _cells(ranked.candidate, result.plan)
        winner = "winner" if ranked is result.winner else ""
        rows.append(
            (
                str(place),
                cells[0],
                cells[2],
                cells[3],
                cells[6],
                str(ranked.epochs),
                format_interval(ranked.top1),
                "" if ranked.confirmed is None else format_interval(ranked.confirmed),
                ", ".join(name for name in (winner, cells[7]) if name),
            )
        )
    print_table(
        ("", "α,β,γ", "layers", "image", "growth", "epochs", "top-1, %", "confirmed, %", ""), rows, left=2
    )
    rule = result.rule
    console().print(f"result   α = {rule.alpha:g}, β = {rule.beta:g}, γ = {rule.gamma:g}")
    if result.against_paper is not None:
        console().print(f"         {_compared(result.against_paper)}", soft_wrap=True)
    console().print(
        f"rule     {out / 'rule.json'}: phiscale scale NETWORK --rule {out / 'rule.json'} --phi 2",
        soft_wrap=True,
    )


def _compared(difference: Interval) -> str:
    """The winner against the paper's rule, and whether the seeds can tell them apart."""
    mean = round(100 * difference.mean, 2) or 0.0  # no -0.00
    points = f"{mean:+.2f} points of top-1 against the paper's rule"
    if difference.low is None or difference.high is None:
        return f"{points}, with one seed, which says nothing of chance"
    interval = f"[{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
    verdict = "" if difference.low > 0 or difference.high < 0 else "; these seeds cannot tell the two apart"
    return f"{points}, {difference.level:.0%} interval {interval} over {difference.count} seeds{verdict}"
