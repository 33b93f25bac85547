"""The coefficient search on images: planned, run, and written into a folder that can be gone on with."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from phiscale.errors import TrainingError, require
from phiscale.evaluation.plots import save_png_and_svg
from phiscale.pipeline.forecast import seconds_per_epoch
from phiscale.pipeline.trial import TrialPlan, one_thread
from phiscale.search.coefficients import CoefficientPlan, CoefficientResult, Stage, search_coefficients
from phiscale.search.coefficients_report import write_result
from phiscale.search.objective import Objective
from phiscale.search.runner import Backend
from phiscale.search.store import TrialStore
from phiscale.search.ternary import draw_ternary

__all__ = ["SCRATCH", "TRIALS", "forecast_seconds", "run_coefficients", "run_folder"]

TRIALS, SCRATCH = "trials.db", "scratch"


def run_coefficients(
    plan: CoefficientPlan,
    trials: TrialPlan,
    out: str | Path,
    *,
    storage: str | None = None,
    study: str = "phiscale",
    workers: int = 1,
    stage: Stage | None = None,
    objective: Objective | None = None,
    backend: Backend | None = None,
) -> CoefficientResult:
    """Run a search, or go on with it, and write what it came to.

    `out` then holds ``rule.json``, which every command takes as ``--rule``, ``ranking.csv``,
    ``result.json``, ``ternary.png`` and ``ternary.svg``, beside the recorded trainings in ``trials.db``.

    Args:
        plan: What to train.
        trials: Images and recipe.
        out: The folder.
        storage: A database as URL instead of the file in `out`.
        study: Name of the study in the database.
        workers: Processes that train, each with one thread.
        stage: Told of each rung.
        objective: What trains instead of `trials.objective`.
        backend: Where to run instead of in processes of this machine.

    Raises:
        TrainingError: Another search runs in `out`, or it was begun with other images or another recipe; a
            worker died again and again; something cannot be written.
        MissingDependencyError: Optuna, scipy or matplotlib is not installed.
    """
    # A search may take a night: what is missing for its last step is told now.
    require("scipy.stats", extra="search")
    require("matplotlib", extra="plot")
    folder = Path(out)
    with run_folder(folder):
        settings = trials.objective.identity()
        with TrialStore(storage or folder / TRIALS, study=study, settings=settings) as store:
            trials.objective.prepare()
            result = search_coefficients(
                plan, objective or trials.objective, store, workers=workers, stage=stage, backend=backend
            )
        write_result(result, folder)
        save_png_and_svg(folder / "ternary", partial(draw_ternary, result=result), width=6.4, height=5.2)
    return result


def forecast_seconds(plan: CoefficientPlan, trials: TrialPlan, *, workers: int = 1) -> float:
    """Estimate how long a search takes, with nothing recorded yet.

    All candidates cost about the same, so one of them is timed for a few steps.

    Args:
        plan: What to train.
        trials: Images and recipe.
        workers: Processes that train, each taken to have a core of its own.

    Returns:
        Seconds.
    """
    with one_thread():
        epoch = seconds_per_epoch(replace(trials.fit, spec=plan.candidates[0].spec))
    return epoch * sum(trainings * epochs for trainings, epochs in plan.trainings()) / workers


@contextlib.contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """Make a folder ready and keep other searches out of it.

    What trainings of a killed search have left in its scratch folder is removed.

    Raises:
        TrainingError: Another process searches there, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise TrainingError(
            f"another search runs in {folder}; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error.strerror or error}") from None
    try:
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        yield
    finally:
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        lock.release()
