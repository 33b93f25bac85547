"""`phiscale fit`: images and a budget in, a trained and measured model directory out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    Ray,
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
    from phiscale.cluster import RayTraining
    from phiscale.data.scan import Finding, ScanReport
    from phiscale.pipeline import FitPlan, FitResult
    from phiscale.pipeline.forecast import Forecast


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
    workers: Annotated[
        int | None,
        typer.Option(
            help="With --ray: processes that train together. (Those that load images: --set workers=N.)",
            min=1,
        ),
    ] = None,
    ray: Ray = None,
    cpus_per_worker: Annotated[int, typer.Option(help="With --ray: cores for each worker.", min=1)] = 1,
    gpus_per_worker: Annotated[int, typer.Option(help="With --ray: GPUs for each worker.", min=0, max=1)] = 0,
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
    hold_out: Annotated[
        float,
        typer.Option(
            min=0,
            help="Hold out so many training images, or a share below 1, to choose the best epoch even where "
            "there is a val split, which then is the test split. The paper: 25000.",
        ),
    ] = 0,
    split_file: SplitFile = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be used.")] = False,
    keep_strides: Annotated[
        bool, typer.Option("--keep-strides", help="Leave the network's strides, however small the images.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, as it was begun.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw away the run in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only plan, and say what memory, time and disk it takes.")
    ] = False,
    json: JsonOutput = False,
) -> None:
    """Train the network that fits your images and your budget, and measure it.

    Scans the images, solves the budget, says what it chose and why, trains, and evaluates. Ctrl-C
    stops cleanly; the same command with --resume goes on, on a cluster with any number of workers.
    """
    began = time.perf_counter()
    place = _place(workers, ray, cpus_per_worker, gpus_per_worker)
    from phiscale.pipeline import plan_fit, run, tune_plan
    from phiscale.pipeline.forecast import forecast
    from phiscale.pipeline.plan import read_plan
    from phiscale.training.history import epochs_done

    short = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "tune": tune,
    }
    if resume:
        plan = read_plan(out)
        console(stderr=True).print(
            f"resumes the run in {out} as it was begun; only --out, --strict and where to train count"
        )
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
                keep_strides=keep_strides,
                hold_out=hold_out,
                progress=progress,
            )
        with counting("measuring what trains fastest here", show=not json):
            plan = tune_plan(plan, together=place is not None)
    if dry_run or not json:
        done = epochs_done(out) if resume else 0
        expected = forecast(plan, out, spent=time.perf_counter() - began, epochs_done=done)
    if not json:
        print_plan(plan)
        print_forecast(expected)
    if dry_run:
        if json:
            print_json({"plan": plan.to_dict(), "forecast": expected.to_dict()})
        return
    with _connected(place) as together:
        result = run(
            plan,
            out,
            resume=resume,
            overwrite=overwrite,
            strict=strict,
            progress=not json,
            together=together,
        )
    if json:
        print_json(_as_dict(result))
    else:
        print_result(result)
    if result.training.interrupted:
        raise typer.Exit(INTERRUPTED)


def _place(
    workers: int | None, ray: str | None, cpus_per_worker: int, gpus_per_worker: int
) -> RayTraining | None:
    """Where to train, as the options say; None is this process."""
    if ray is None:
        if workers is not None:
            raise typer.BadParameter(
                "--workers is how many processes train together and goes with --ray, such as --ray local; "
                "processes that load images are --set workers=N"
            )
        if (cpus_per_worker, gpus_per_worker) != (1, 0):
            raise typer.BadParameter("--cpus-per-worker and --gpus-per-worker go with --ray")
        return None
    if workers is None:
        raise typer.BadParameter("--ray needs --workers, how many processes train together")
    from phiscale.cluster import RayTraining

    return RayTraining(ray, workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker)


@contextmanager
def _connected(place: RayTraining | None) -> Iterator[RayTraining | None]:
    """Connect to a cluster for the block; there, Ctrl-C ends the workers at once."""
    if place is None:
        yield None
        return
    try:
        with place:
            yield place
    except KeyboardInterrupt:
        console(stderr=True).print(
            "stopped; the last checkpoint is in place: run the same again with --resume to go on"
        )
        raise typer.Exit(INTERRUPTED) from None


def print_plan(plan: FitPlan) -> None:
    """Print what was found and chosen."""
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


def print_forecast(expected: Forecast) -> None:
    """Print what memory, time and disk a run needs, and what to do where they are short."""
    out, room = console(), expected.room
    free = "" if room.memory is None else f"; {format_bytes(room.memory)} more than now is free"
    cache = f", {format_bytes(expected.cache_bytes)} of decoded images in {expected.cache}"
    out.print(
        f"memory   about {format_bytes(expected.memory_bytes)} resident at the peak"
        f"{cache if expected.cache else ''}{free}"
    )
    if expected.device_bytes is not None and room.device is not None:
        out.print(
            f"gpu      about {format_bytes(expected.device_bytes)}; {format_bytes(room.device)} is free"
        )
    free = "" if room.disk is None else f"; {format_bytes(room.disk)} is free"
    out.print(
        f"disk     about {format_bytes(expected.disk_bytes)} while it trains, "
        f"{format_bytes(expected.checkpoint_bytes + expected.model_bytes)} afterwards{free}"
    )
    if expected.epoch_seconds is not None and expected.seconds is not None:
        out.print(
            f"time     about {format_duration(expected.epoch_seconds)} an epoch, "
            f"{format_duration(expected.seconds)} in all for {expected.epochs} epochs"
        )
    for problem in expected.problems:
        out.print(f"warning  {problem}")
    for suggestion in expected.suggestions:
        out.print(f"try      {suggestion}")


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
        if evaluation.near_chance:
            out.print(
                "warning  no better than always naming the largest class, within two standard errors; more "
                "--epochs, another --learning-rate, trained weights (--recipe finetune), or `phiscale scan`"
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
