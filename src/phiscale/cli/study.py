"""`phiscale study`: one dimension scaled against all three, at equal multiply-adds, on your images."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phiscale.cli import options
from phiscale.cli.output import console, print_json, print_table
from phiscale.cli.progress import counting
from phiscale.cli.searching import Place, print_forecast, print_images, scan_and_plan, stoppable
from phiscale.cli.units import format_count, parse_count
from phiscale.errors import BudgetError

if TYPE_CHECKING:
    from phiscale.pipeline.trial import TrialPlan
    from phiscale.search.study import StudyPlan, StudyResult


def study(
    images: options.Images,
    baseline: options.Baseline = "efficientnet_b0",
    out: options.RunFolder = Path("study"),
    tables: Annotated[
        str, typer.Option(help="Comma-separated: table7, figure3, figure4, figure8, table3.")
    ] = "table7,figure3,figure4,figure8,table3",
    budget: Annotated[
        str | None,
        typer.Option(metavar="Nx", help="Compare at N times the baseline's multiply-adds; 4x by default."),
    ] = None,
    macs: Annotated[
        float | None, typer.Option(parser=parse_count, metavar="N", help="Compare at N multiply-adds.")
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            help="Costs in the figures, like 1.5x,2x,4x; the last is the budget. By default three of them."
        ),
    ] = None,
    rule: options.Rule = "paper",
    families: Annotated[
        str, typer.Option(help="Networks of table3, from `phiscale models`.")
    ] = "mobilenet_v1,mobilenet_v2,resnet50",
    full_families: Annotated[
        bool,
        typer.Option(
            "--full-families", help="Leave the networks of table3 as wide as published, whatever they cost."
        ),
    ] = False,
    seeds: Annotated[int, typer.Option(help="Trainings of each network.", min=1)] = 5,
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
    study_name: options.StudyName = "phiscale",
    dry_run: options.DryRun = False,
    json: options.JsonOutput = False,
) -> None:
    """Compare scaling one dimension with scaling all three on your images, at equal multiply-adds.

    Makes the paper's tables and figures for a baseline and writes them as CSV, pictures and a web page. The
    same command goes on with a study that was stopped at any moment.
    """
    from phiscale.pipeline.study import study_images
    from phiscale.pipeline.trial import plan_trials
    from phiscale.scaling.compound import get_rule
    from phiscale.search.study import plan_study

    growth = None if budget is None else _times(budget)
    compound = get_rule(rule)
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
    plan = plan_study(
        trials.baseline,
        tables=_names(tables),
        growth=growth,
        macs=macs,
        levels=None if levels is None else [_times(level) for level in _names(levels)],
        rule=compound,
        families=_names(families),
        full_families=full_families,
    )
    with stoppable(), place.open() as (backend, at_a_time):
        if dry_run:
            _show_plan(plan, trials, seeds, at_a_time, as_json=json)
            return
        if not json:
            _print_summary(plan, trials, seeds)
        with counting("training", show=not json) as progress:
            result = study_images(
                plan,
                trials,
                out,
                seeds=range(seed, seed + seeds),
                storage=storage,
                study=study_name,
                workers=at_a_time,
                backend=backend,
                trained_on=None if backend is None else str(backend),
                progress=progress,
                command=shlex.join(["phiscale", *sys.argv[1:]]),
            )
    if json:
        from phiscale.search.study_files import result_to_dict

        print_json({"directory": str(out), **result_to_dict(result)})
    else:
        _print_result(result, out)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _times(text: str) -> float:
    """``"4x"`` or ``"4"`` → 4.0."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[x×]?\s*", text)
    if match is None:
        raise BudgetError(
            f"{text!r} is no multiple of the baseline's multiply-adds; write it like 4x, or give --macs"
        )
    return float(match.group(1))


def _show_plan(plan: StudyPlan, trials: TrialPlan, seeds: int, workers: int, *, as_json: bool) -> None:
    from phiscale.pipeline.study import forecast_study
    from phiscale.search.study_files import plan_to_dict

    seconds = forecast_study(plan, trials, seeds, workers=workers)
    if as_json:
        planned = {"seeds": seeds, "trainings": seeds * len(plan.networks)}
        print_json({**plan_to_dict(plan), **planned, "workers": workers, "forecast_seconds": seconds})
        return
    _print_summary(plan, trials, seeds)
    for part in plan.parts:
        rows = []
        for arm in part.comparison.arms:
            factors = arm.scaling
            second = "" if arm.fine is None else f"{arm.fine} × {arm.fine_factor:g}"
            rows.append(
                (
                    arm.name,
                    f"{factors.depth:.4g}",
                    f"{factors.width:.4g}",
                    f"{factors.resolution:.4g}",
                    second,
                    arm.spec.num_blocks,
                    f"{arm.spec.image_size[0]}×{arm.spec.image_size[1]}",
                    format_count(arm.macs),
                )
            )
        print_table(
            ("arm", "d", "w", "r", "second", "layers", "image", "multiply-adds"),
            rows,
            title=f"{part.title} (within {part.comparison.spread:.1%})",
        )
    print_forecast(seconds, workers)


def _print_summary(plan: StudyPlan, trials: TrialPlan, seeds: int) -> None:
    from phiscale.scaling.complexity import complexity
    from phiscale.search.study import missing_arms

    out = console()
    print_images(trials.objective.source, trials.notes)
    side = plan.baseline.image_size
    out.print(
        f"baseline {plan.baseline.name}: {format_count(complexity(plan.baseline).macs)} multiply-adds, "
        f"{side[0]}×{side[1]} px"
    )
    for sentence in missing_arms(plan):
        out.print(f"missing  {sentence}", soft_wrap=True)
    out.print(
        f"study    {len(plan.parts)} comparisons of {len(plan.networks)} networks: "
        f"{seeds * len(plan.networks)} trainings, {trials.objective.recipe.epochs} epochs each"
    )


def _print_result(result: StudyResult, out: Path) -> None:
    from phiscale.pipeline.study import PAGE
    from phiscale.search.study_files import part_rows

    for part in result.plan.parts:
        detectable = result.analyse(part.comparison).detectable
        seen = "" if detectable is None else f"; the seeds could have shown {100 * detectable:.2f} points"
        print_table(
            ("arm", "multiply-adds", "top-1, %", "95 %", "less compound", "s / epoch", "ms"),
            [
                (
                    row["arm"],
                    format_count(row["macs"]),
                    f"{100 * row['top1']:.2f}",
                    _ends(row["top1_low"], row["top1_high"]),
                    "" if row["less_compound"] is None else f"{100 * row['less_compound']:+.2f}",
                    f"{row['epoch_seconds']:.3g}",
                    "" if row["latency_ms"] is None else f"{row['latency_ms']:.3g}",
                )
                for row in part_rows(result, part)
            ],
            title=f"{part.title}{seen}",
        )
    console().print(f"page     {out / PAGE}", soft_wrap=True)


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:.2f}–{100 * high:.2f}"
