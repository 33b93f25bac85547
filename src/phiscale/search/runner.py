"""Trainings done: those that are recorded are left out, the others run here or in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Protocol

from phiscale.search.objective import Objective, Score, Trial
from phiscale.search.store import TrialStore
from phiscale.search.workers import Processes

__all__ = ["Backend", "Progress", "Results", "local_backend", "run_here", "run_trials"]

Results = Generator[tuple[Trial, Score], None, None]

Progress = Callable[[int, int], None]
"""Takes the number of trainings that are done, and of all."""


class Backend(Protocol):
    """Where trainings run."""

    def __call__(self, trials: Sequence[Trial], objective: Objective) -> Results:
        """Run all trials and yield each result as soon as there is one, in any order.

        A trial whose worker is lost runs again. An error of the objective is raised after the other trials
        have been run, so that they are not lost.
        """
        ...


def run_trials(
    trials: Iterable[Trial],
    objective: Objective,
    store: TrialStore,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    backend: Backend | None = None,
) -> dict[str, Score]:
    """Run the trainings that have no recorded result, and record each as soon as it ends.

    May be killed at any moment and called again: what was recorded is not trained a second time.

    Args:
        trials: The trainings; of equal ones, one is done.
        objective: Trains.
        store: Has the results so far, and takes the new ones.
        workers: 1 trains in this process, more in as many others, each with one thread.
        progress: Told how many are done, at the start and after each training.
        backend: Where to run instead, for example on a cluster.

    Returns:
        `Trial.key` → result, in the order of `trials`.

    Raises:
        ValueError: `workers` is below 1.
        TrainingError: A trial lost its worker again and again; the store cannot be used.
    """
    wanted = {trial.key: trial for trial in trials}
    scores = {key: score for key, trial in wanted.items() if (score := store.get(trial)) is not None}
    missing = [trial for key, trial in wanted.items() if key not in scores]
    if progress:
        progress(len(scores), len(wanted))
    # Closed at once when something goes wrong here, so that no worker is left running.
    with _or_local(backend, workers) as run, closing(run(missing, objective)) as results:
        for trial, score in results:
            store.put(trial, score)
            scores[trial.key] = score
            if progress:
                progress(len(scores), len(wanted))
    return {key: scores[key] for key in wanted}


@contextmanager
def local_backend(workers: int) -> Iterator[Backend]:
    """A backend on this machine, whose processes stay from one call to the next.

    Args:
        workers: 1 is this process.

    Raises:
        ValueError: `workers` is below 1.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if workers == 1:
        yield run_here
        return
    with Processes(workers) as processes:
        yield processes


def _or_local(backend: Backend | None, workers: int) -> AbstractContextManager[Backend]:
    return local_backend(workers) if backend is None else nullcontext(backend)


def run_here(trials: Sequence[Trial], objective: Objective) -> Results:
    """Run trials one after the other in this process."""
    failed: Exception | None = None
    for trial in trials:
        try:
            score = objective(trial.spec, seed=trial.seed, epochs=trial.epochs)
        except Exception as error:  # told at the end: the other trainings are not to be lost
            failed = failed or error
            continue
        yield trial, score
    if failed is not None:
        raise failed
