"""What the commands that search have in common: where they train, what they say, how they stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from phiscale.cli.output import INTERRUPTED, console
from phiscale.cli.progress import counting
from phiscale.cli.units import format_duration

if TYPE_CHECKING:
    from phiscale.data.sources import ImageSource
    from phiscale.search.runner import Backend, Progress
    from phiscale.search.statistics import Interval

__all__ = [
    "Place",
    "default_workers",
    "format_interval",
    "print_forecast",
    "print_images",
    "scan_and_plan",
    "stage",
    "stoppable",
]

P = TypeVar("P")


# ------------------------------------------------------------------------------------------- where


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the trainings of a search run, as the options say.

    Attributes:
        workers: Of --workers; None where it was not given.
        ray: Of --ray; None for this machine.
        cpus_per_trial: Cores for each training on the cluster.
        gpus_per_trial: GPUs for each training on the cluster.
    """

    workers: int | None
    ray: str | None
    cpus_per_trial: int
    gpus_per_trial: float

    def __post_init__(self) -> None:
        if self.ray is None and (self.cpus_per_trial, self.gpus_per_trial) != (1, 0.0):
            raise typer.BadParameter("--cpus-per-trial and --gpus-per-trial go with --ray")
        if self.ray is not None and self.workers is not None:
            raise typer.BadParameter("--workers is for this machine; on a cluster, --ray uses what there is")

    @contextmanager
    def open(self) -> Iterator[tuple[Backend | None, int]]:
        """Connect where that is needed.

        Yields:
            The backend, None for processes of this machine; and how many train at a time.

        Raises:
            TrainingError: The cluster does not answer.
            MissingDependencyError: Ray is not installed.
        """
        if self.ray is None:
            yield None, self.workers or default_workers()
            return
        from phiscale.cluster import RayBackend

        needs = {"cpus_per_trial": self.cpus_per_trial, "gpus_per_trial": self.gpus_per_trial}
        with RayBackend(self.ray, **needs) as backend:
            yield backend, max(1, backend.slots())

    def has_gpus(self) -> bool:
        """Whether each training has a GPU, or a part of one."""
        if self.ray is not None:
            return self.gpus_per_trial > 0
        import torch

        return torch.cuda.is_available()

    def scratch(self, out: Path) -> Path | None:
        """Folder for what trainings write while they run; None is that of each machine's system."""
        from phiscale.pipeline.coefficients import SCRATCH

        return out.absolute() / SCRATCH if self.ray is None else None


def default_workers() -> int:
    """One for each core that this process may use; on a GPU one, which needs all of it."""
    import torch

    from phiscale.deploy.runtimes.base import cores

    if torch.cuda.is_available():
        return 1
    return cores()


# ---------------------------------------------------------------------------------------- the course


def scan_and_plan(
    plan: Callable[..., P], images: str, *, out: Path, place: Place, quiet: bool, **settings: Any
) -> P:
    """What a planner of the pipeline makes of some images.

    Args:
        plan: `plan_trials` or `plan_baseline`.
        images: As for `phiscale.fit`.
        out: The run folder.
        place: Where the trainings run.
        quiet: Draw no bar.
        **settings: The planner's other arguments.
    """
    with counting("scanning", show=not quiet) as progress:
        where = {"scratch": place.scratch(out), "on_gpu": place.has_gpus()}
        return plan(images, progress=progress, **where, **settings)


@contextmanager
def stage(label: str) -> Iterator[Progress | None]:
    """Says what begins, and draws a bar where somebody looks."""
    console(stderr=True).print(label, soft_wrap=True)
    with counting("training") as progress:
        yield progress


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn Ctrl-C into a line that says how to go on, and its exit code."""
    try:
        yield
    except KeyboardInterrupt:
        console(stderr=True).print("stopped; what is finished is kept: the same command goes on")
        raise typer.Exit(INTERRUPTED) from None


# ------------------------------------------------------------------------------------------- printing


def print_images(source: ImageSource, notes: Sequence[str]) -> None:
    """Print what is trained on, and what was chosen."""
    counts = ", ".join(f"{len(source.split(split))} {split}" for split in ("train", "val"))
    out = console()
    out.print(f"images   {source.location}: {len(source.classes)} classes, {counts}", soft_wrap=True)
    for note in notes:
        out.print(f"chosen   {note}", soft_wrap=True)


def print_forecast(seconds: float, workers: int, *, width: int = 9) -> None:
    """Print how long a search takes, after a label that is `width` characters wide."""
    many = "1 worker" if workers == 1 else f"{workers} workers"
    console().print(f"{'time':{width}}about {format_duration(seconds)} with {many}")


def format_interval(interval: Interval) -> str:
    """A share as per cent, with its interval where there is one: ``91.20 [90.85, 91.55]``."""
    if interval.low is None or interval.high is None:
        return f"{100 * interval.mean:.2f}"
    return f"{100 * interval.mean:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
