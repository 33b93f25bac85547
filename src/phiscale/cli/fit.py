"""`phiscale fit`: images and a budget in, a trained and measured model directory out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phiscale.cli.options import (
    FileSize,
    Fresh,
    Images,
    ImagesPerSecond,
    InferenceMemory,
    JsonOutput,
    LatencyMs,
    Macs,
    Params,
    Precision,
    Resize,
    Rule,
    Runtime,
    Settings,
    SplitFile,
    Threads,
    TrainingMemory,
    make_budget,
    make_overrides,
)
from phiscale.cli.output import INTERRUPTED, console, print_json
from phiscale.cli.progress import counting
from phiscale.cli.timing import latency_limit, make_meter
from phiscale.cli.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from phiscale.data.scan import Finding, ScanReport
    from phiscale.pipeline import FitPlan, FitResult


def fit(
    images: Images,
    out: Annotated[Path, typer.Option(help="The model directory to make.", file_okay=False)] = Path("model"),
    macs: Macs = None,
    params: Params = None,
    inference_memory: InferenceMemory = None,
    training_memory: TrainingMemory = None,
    file_size: FileSize = None,
    latency_ms: LatencyMs = None,
    images_per_second: ImagesPerSecond = None,
    runtime: Runtime = None,
    precision: Precision = "fp32",
    threads: Threads = None,
    latency_batch_size: Annotated[int, typer.Option(help="Images in a run that is timed.", min=1)] = 1,
    fresh: Fresh = False,
    model: Annotated[
        str, typer.Option(help="The baseline: a name from `phiscale models` or a JSON file.")
    ] = "efficientnet_b0",
    rule: Rule = "paper",
    weights: Annotated[
        str | None,
        typer.Option(
            help="Start from a model directory, or from weights of --model: anybody's file, imagenet, "
            "lite0-warm-start (B0), or a name from `phiscale weights list`."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Image side in pixels; by default chosen from budget and images.", min=8),
    ] = None,
    resize: Resize = "crop",
    recipe: Annotated[
        str | None,
        typer.Option(
            help="fast, finetune, paper or a YAML file; finetune with --weights, else fast. finetune without "
            "--weights starts from those that come with pip."
        ),
    ] = None,
    settings: Settings = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate per 256 images.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that load images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="auto|off",
            help="auto measures which precision and layers train fastest here; off takes the recipe's, so "
            "that the same seed gives the same weights. The recipes that come with phiscale say auto.",
        ),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share held out to choose the best epoch, where there is no val split.")
    ] = 0.2,
    split_file: SplitFile = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be used.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, as it was begun.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw away the run in --out.")] = False,
    json: JsonOutput = False,
) -> None:
    """Train the network that fits your images and your budget, and measure it.

    Scans the images, solves the budget, says what it chose and why, trains, and evaluates. Ctrl-C
    stops cleanly; the same command with --resume goes on.
    """
    from phiscale.pipeline import plan_fit, run, tune_plan
    from phiscale.pipeline.plan import read_plan

    short = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "workers": workers,
        "seed": seed,
        "tune": tune,
    }
    if resume:
        plan = read_plan(out)
        console(stderr=True).print(f"resumes the run in {out} as it was begun; only --out and --strict count")
    else:
        limit = latency_limit(latency_ms, images_per_second, latency_batch_size)
        meter = None
        if limit is not None:
            meter = make_meter(runtime, precision, threads, latency_batch_size, fresh=fresh, show=not json)
        with counting("scanning", show=not json) as progress:
            plan = plan_fit(
                images,
                model=model,
                budget=make_budget(macs, params, inference_memory, training_memory, file_size, limit),
                meter=meter,
                rule=rule,
                recipe=recipe,
                overrides=make_overrides(settings, short),
                weights=weights,
                image_size=image_size,
                resize=resize,  # type: ignore[arg-type]
                val_fraction=val_fraction,
                split_file=split_file,
                strict=strict,
                progress=progress,
            )
        with counting("measuring what trains fastest here", show=not json):
            plan = tune_plan(plan)
    if not json:
        print_plan(plan)
    result = run(plan, out, resume=resume, overwrite=overwrite, strict=strict, progress=not json)
    if json:
        print_json(_as_dict(result))
    else:
        print_result(result)
    if result.training.interrupted:
        raise typer.Exit(INTERRUPTED)


def print_plan(plan: FitPlan) -> None:
    """Print what was found and chosen, and how long an epoch will take."""
    from phiscale.pipeline.forecast import seconds_per_epoch
    from phiscale.scaling.complexity import complexity

    out, source = console(), plan.source
    counts = ", ".join(f"{len(source.split(s))} {s}" for s in ("train", "val", "test") if source.split(s))
    out.print(f"images   {plan.images}: {len(source.classes)} classes, {counts}")
    if plan.report is not None:
        _print_findings(plan.report)
    for note in plan.notes:
        out.print(f"chosen   {note}")
    cost = complexity(plan.spec, plan.recipe.batch_size)
    out.print(
        f"network  {plan.spec.name}: {format_count(cost.macs)} multiply-adds, {format_count(cost.params)} "
        f"parameters, {format_bytes(cost.file_bytes)} file, {format_bytes(cost.training_bytes)} of tensors "
        f"to train batches of {plan.recipe.batch_size}"
    )
    seconds = seconds_per_epoch(plan)
    total = seconds * plan.recipe.epochs
    out.print(
        f"time     about {format_duration(seconds)} an epoch, {format_duration(total)} for "
        f"{plan.recipe.epochs} epochs"
    )


def _print_findings(report: ScanReport) -> None:
    """One line for each kind of problem, with its first case."""
    out = console()
    by_kind: dict[str, list[Finding]] = {}
    for finding in report.findings:
        if finding.severity != "note":
            by_kind.setdefault(finding.kind, []).append(finding)
    for kind, findings in by_kind.items():
        example = f", such as {findings[0].ids[0]}" if findings[0].ids else ""
        out.print(f"{findings[0].severity:8} {len(findings)} × {kind.replace('_', ' ')}{example}")
    if by_kind:
        out.print(f"         `phiscale scan {report.location}` explains them; --json lists them all")
    if report.unusable:
        out.print(f"         {len(report.unusable)} images cannot be used and are left out")


def print_result(result: FitResult) -> None:
    """Print the figures of a finished run, or how far an interrupted one came."""
    out, evaluation = console(), result.evaluation
    if evaluation is not None:
        out.print(
            f"result   top-1 {evaluation.top1:.1%} on {len(evaluation.labels)} {evaluation.data['split']} "
            f"images ({format_duration(result.training.seconds)} of training)"
        )
    out.print(f"model    {result.directory}")


def _as_dict(result: FitResult) -> dict[str, Any]:
    training, evaluation = result.training, result.evaluation
    return {
        "directory": str(result.directory),
        "interrupted": training.interrupted,
        "stopped_early": training.stopped_early,
        "seconds": training.seconds,
        "history": [record.to_dict() for record in training.history],
        "metrics": None if evaluation is None else evaluation.to_dict(),
    }
