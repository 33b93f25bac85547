"""`phiscale study`: one dimension scaled against all three, at equal multiply-adds, on your images."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phiscale.cli.options import JsonOutput, Rule, make_overrides
from phiscale.cli.output import INTERRUPTED, console, print_json, print_table
from phiscale.cli.progress import counting
from phiscale.cli.search_coefficients import _default_workers
from phiscale.cli.units import format_count, format_duration, parse_count
from phiscale.errors import BudgetError, SpecError

if TYPE_CHECKING:
    from phiscale.pipeline.trial import TrialPlan
    from phiscale.search.study import StudyPlan, StudyResult


def study(
    images: Annotated[
        str,
        typer.Argument(
            help="Folder with one folder per class, a CSV or Parquet manifest, or torchvision:NAME:ROOT."
        ),
    ],
    baseline: Annotated[
        str,
        typer.Option(
            help="A name from `phiscale models`, fitted to the images' size; or a JSON file, taken as it is."
        ),
    ] = "efficientnet_b0",
    out: Annotated[
        Path, typer.Option(help="Folder for trainings and results; it is gone on with.", file_okay=False)
    ] = Path("study"),
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
    rule: Rule = "paper",
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
    image_size: Annotated[int | None, typer.Option(help="Image side of the baseline.", min=8)] = None,
    resize: Annotated[
        str, typer.Option(help="crop (the centre), squash (the whole image) or pad (the whole image).")
    ] = "crop",
    recipe: Annotated[str, typer.Option(help="fast, paper or a YAML file.")] = "fast",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of the recipe, like --set augment.policy=none.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    seed: Annotated[int, typer.Option(help="First seed; the split of the images is by it too.", min=0)] = 0,
    val_fraction: Annotated[
        float, typer.Option(help="Share held out to compare on, where there is no val split.")
    ] = 0.2,
    split_file: Annotated[
        Path | None, typer.Option(help="CSV with path and split (train, val, test) that decides the splits.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that train, each with one thread; by default one per core.", min=1),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Keep the trainings in this database, like postgresql://USER@HOST/NAME."),
    ] = None,
    study_name: Annotated[str, typer.Option("--study", help="Name of the study in --storage.")] = "phiscale",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the networks, their cost, and how long it takes.")
    ] = False,
    json: JsonOutput = False,
) -> None:
    """Compare scaling one dimension with scaling all three on your images, at equal multiply-adds.

    Makes the paper's tables and figures for a baseline and writes them as CSV, pictures and a web page. The
    same command goes on with a study that was stopped at any moment.
    """
    from phiscale.pipeline.coefficients import SCRATCH
    from phiscale.pipeline.study import study_images
    from phiscale.pipeline.trial import plan_trials
    from phiscale.scaling.compound import get_rule
    from phiscale.search.study import plan_study

    if resize not in ("crop", "squash", "pad"):
        raise SpecError(f"resize must be crop, squash or pad; got {resize!r}")
    growth = None if budget is None else _times(budget)
    compound = get_rule(rule)
    short = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    with counting("scanning", show=not json) as progress:
        trials = plan_trials(
            images,
            baseline=baseline,
            recipe=recipe,
            overrides=make_overrides(settings, short),
            image_size=image_size,
            resize=resize,  # type: ignore[arg-type]
            val_fraction=val_fraction,
            split_file=split_file,
            scratch=out.absolute() / SCRATCH,
            progress=progress,
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
    workers = workers or _default_workers()
    if dry_run:
        _show_plan(plan, trials, seeds, workers, as_json=json)
        return
    if not json:
        _print_summary(plan, trials, seeds)
    try:
        with counting("training", show=not json) as progress:
            result = study_images(
                plan,
                trials,
                out,
                seeds=range(seed, seed + seeds),
                storage=storage,
                study=study_name,
                workers=workers,
                progress=progress,
                command=shlex.join(["phiscale", *sys.argv[1:]]),
            )
    except KeyboardInterrupt:
        console(stderr=True).print("stopped; the finished trainings are kept: the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
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
    console().print(f"time     about {format_duration(seconds)} with {workers} workers")


def _print_summary(plan: StudyPlan, trials: TrialPlan, seeds: int) -> None:
    from phiscale.scaling.complexity import complexity
    from phiscale.search.study import missing_arms

    out, source = console(), trials.objective.source
    counts = ", ".join(f"{len(source.split(split))} {split}" for split in ("train", "val"))
    out.print(f"images   {source.location}: {len(source.classes)} classes, {counts}", soft_wrap=True)
    for note in trials.notes:
        out.print(f"chosen   {note}", soft_wrap=True)
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
