"""The study on images: trained, timed, and written into a folder that can be gone on with."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from phiscale.deploy.latency import LatencyMeter, Meter
from phiscale.deploy.machine import this_machine
from phiscale.deploy.setting import Setting
from phiscale.errors import TrainingError, require
from phiscale.evaluation.plots import new_figure
from phiscale.pipeline.coefficients import TRIALS, run_folder
from phiscale.pipeline.forecast import seconds_per_epoch
from phiscale.pipeline.trial import TrialPlan, one_thread
from phiscale.scaling.complexity import complexity
from phiscale.search.objective import Objective
from phiscale.search.runner import Backend, Progress
from phiscale.search.store import TrialStore
from phiscale.search.study import StudyPlan, StudyResult, Table, run_study
from phiscale.search.study_figures import FIGURES, SIZES, STYLE
from phiscale.search.study_files import write_tables
from phiscale.search.study_page import KINDS, render_page
from phiscale.weights.files import replacing, write_text

__all__ = ["PAGE", "forecast_study", "study_images", "write_study"]

PAGE = "index.html"


def study_images(
    plan: StudyPlan,
    trials: TrialPlan,
    out: str | Path,
    *,
    seeds: Sequence[int],
    storage: str | None = None,
    study: str = "phiscale",
    workers: int = 1,
    progress: Progress | None = None,
    objective: Objective | None = None,
    backend: Backend | None = None,
    meter: Meter | None = None,
    trained_on: str | None = None,
    command: str | None = None,
) -> StudyResult:
    """Run a study, or go on with it, and write what it came to.

    `out` then holds ``index.html``, ``arms.csv``, ``trainings.csv``, ``study.json``, ``figures/`` and
    ``networks/``, beside the recorded trainings in ``trials.db``.

    Args:
        plan: The networks.
        trials: Images and recipe.
        out: The folder.
        seeds: Seeds of the trainings.
        storage: A database as URL instead of the file in `out`.
        study: Name of the study in the database.
        workers: Processes that train, each with one thread.
        progress: Told how many trainings are done, and of all.
        objective: What trains instead of `trials.objective`.
        backend: Where to run instead of in processes of this machine.
        meter: Times the networks, after all trainings; None is one thread of this machine, one image at a
            time, in the fastest engine that is installed.
        trained_on: Where the backend trains, for the page; None is this machine.
        command: How the study was called, for the page.

    Raises:
        TrainingError: Another search runs in `out`, or it was begun with other images or another recipe; a
            worker died again and again; something cannot be written.
        MissingDependencyError: Optuna, scipy, Jinja2 or matplotlib is not installed.
    """
    # A study may take a night: what is missing for its last step is told now.
    for module, extra in (("scipy.stats", "search"), ("jinja2", "search"), ("matplotlib", "plot")):
        require(module, extra=extra)
    folder, recipe = Path(out), trials.objective.recipe
    with run_folder(folder):
        settings = trials.objective.identity()
        with TrialStore(storage or folder / TRIALS, study=study, settings=settings) as store:
            trials.objective.prepare()
            result = run_study(
                plan,
                objective or trials.objective,
                store,
                seeds=seeds,
                epochs=recipe.epochs,
                workers=workers,
                progress=progress,
                backend=backend,
            )
        meter = meter or LatencyMeter(Setting(threads=1))
        times = [latency.median_ms for latency in meter(plan.networks)]
        result = result.with_latencies(dict(zip(result.measured, times, strict=True)))
        write_study(
            result, folder, facts=_facts(result, trials, trained_on, command), timing=_timing(workers, meter)
        )
    return result


def write_study(result: StudyResult, folder: Path, *, facts: Mapping[str, str], timing: str) -> None:
    """Write tables, figures and, last, the page.

    Args:
        result: The study.
        folder: Where to; it must exist.
        facts: Name and value of what the reader of the page must know.
        timing: A sentence on how times were measured.

    Raises:
        TrainingError: A file cannot be written.
        MissingDependencyError: matplotlib, scipy or Jinja2 is not installed.
    """
    write_tables(result, folder)
    try:
        figures = _draw_figures(result, folder / "figures")
        write_text(folder / PAGE, render_page(result, figures, facts=facts, timing=timing))
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error.strerror or error}") from None


def _draw_figures(result: StudyResult, folder: Path) -> dict[Table, str]:
    """Draw each table and figure that was asked for to PNG and SVG; returns the SVGs."""
    matplotlib = require("matplotlib", extra="plot")
    folder.mkdir(exist_ok=True)
    drawn: dict[Table, str] = {}
    for table in result.plan.tables:
        if not result.plan.of_kind(KINDS[table]):
            continue  # the page says what is missing
        with matplotlib.rc_context(STYLE):
            figure = new_figure(*SIZES[table], dpi=200)
            FIGURES[table](figure, result)
            svg = io.StringIO()
            figure.savefig(svg, format="svg", metadata={"Date": None})
            with replacing(folder / f"{table}.png") as temporary:
                # A picture on its own has no page behind it.
                figure.savefig(temporary, format="png", transparent=False)
        drawn[table] = svg.getvalue()
        write_text(folder / f"{table}.svg", drawn[table])
    return drawn


def _facts(
    result: StudyResult, trials: TrialPlan, trained_on: str | None, command: str | None
) -> dict[str, str]:
    source, recipe, plan = trials.objective.source, trials.objective.recipe, result.plan
    cost = complexity(plan.baseline)
    side = plan.baseline.image_size
    rule = plan.rule
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else str(this_machine())
    facts = {
        "images": f"{len(source.classes)} classes, {len(source.split('train')):,} for training, "
        f"{len(source.split('val')):,} for validation",
        "baseline": f"{plan.baseline.name}, {cost.macs / 1e6:.3g} million multiply-adds, "
        f"{cost.params / 1e6:.3g} million parameters, {side[0]}×{side[1]} px",
        "compound rule": f"α = {rule.alpha:g}, β = {rule.beta:g}, γ = {rule.gamma:g}",
        "training": f"{recipe.epochs} epochs, batches of {recipe.batch_size}, {recipe.optimizer}",
        "trainings": f"{len(plan.networks)} networks × {len(result.seeds)} seeds",
        "machine": f"{device}, PyTorch {torch.__version__.partition('+')[0]}",
    }
    told = {"trained on": trained_on, "command": command}
    return facts | {name: value for name, value in told.items() if value is not None}


def _timing(workers: int, meter: Meter) -> str:
    beside = f", with up to {workers} trainings at a time" if workers > 1 else ""
    return (
        f"“s / epoch” is the mean time of an epoch{beside}. “Infer, ms” is the median of one run, the "
        f"networks taking turns: {meter.where}."
    )


def forecast_study(plan: StudyPlan, trials: TrialPlan, seeds: int, *, workers: int = 1) -> float:
    """Estimate how long a study takes, with nothing recorded yet.

    The baseline is timed for a few steps; the others are taken to need time in proportion to their
    multiply-adds.

    Args:
        plan: What to train.
        trials: Images and recipe.
        seeds: How many.
        workers: Processes that train, each taken to have a core of its own.

    Returns:
        Seconds.
    """
    with one_thread():
        epoch = seconds_per_epoch(replace(trials.fit, spec=plan.baseline))
    relative = sum(complexity(spec).macs for spec in plan.networks) / complexity(plan.baseline).macs
    return epoch * relative * trials.objective.recipe.epochs * seeds / workers
