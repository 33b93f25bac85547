"""Worker processes with one thread each, any of which may die.

Each worker has a pipe of its own and shares no lock with the others, so one that is killed harms nobody.
When this process is killed, the workers end by themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from phiscale.search.objective import Objective, Score, Trial
from phiscale.search.pending import PendingTrials

__all__ = ["THREAD_SETTINGS", "Processes", "answer"]

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that say how many threads a process has; read when numpy and torch are imported."""


class Processes:
    """A backend that runs trials in other processes of this machine.

    A context manager: the processes stay for the next call, until the end of the block.

    Args:
        workers: How many, each with one thread.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._objective = b""
        self._idle: list[_Worker] = []

    def __call__(
        self, trials: Sequence[Trial], objective: Objective
    ) -> Generator[tuple[Trial, Score], None, None]:
        """See `phiscale.search.runner.Backend`."""
        self._hire(pickle.dumps(objective), len(trials))
        pending = PendingTrials(trials)
        busy: list[_Worker] = []
        try:
            while pending or busy:
                while pending and self._idle:
                    worker = self._idle.pop()
                    worker.give(pending.take())
                    busy.append(worker)
                for worker in _with_news(busy):
                    busy.remove(worker)
                    result = worker.take()
                    if result is None:
                        self._replace(worker)
                        pending.lose(worker.trial, last=f"with exit code {worker.process.exitcode}")
                        continue
                    self._idle.append(worker)
                    if isinstance(result, Score):
                        yield worker.trial, result
                    else:
                        pending.fail(result)
        finally:
            for worker in busy:
                worker.end()
        pending.raise_error()

    def _hire(self, objective: bytes, trials: int) -> None:
        """Have a process for each trial, as far as `workers` allows."""
        if objective != self._objective:
            self.close()
            self._objective = objective
        for _ in range(min(self.workers, trials) - len(self._idle)):
            self._idle.append(_Worker(objective))

    def _replace(self, dead: _Worker) -> None:
        dead.end()
        self._idle.append(_Worker(self._objective))

    def close(self) -> None:
        """End the processes."""
        while self._idle:
            self._idle.pop().end()

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """The driver's side of one process.

    Args:
        objective: Pickled.
    """

    def __init__(self, objective: bytes) -> None:
        # Not forked: a fork of a process in which torch has run threads can hang.
        context = multiprocessing.get_context("spawn")
        self.connection, other_end = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(other_end,), name="phiscale trial")
        self.process.start()
        other_end.close()  # so that the end of the process is the end of the pipe
        with contextlib.suppress(OSError):
            self.connection.send_bytes(objective)
        self.trial: Trial

    def give(self, trial: Trial) -> None:
        """Hand over the next trial; a dead process is noticed when its answer is taken."""
        self.trial = trial
        with contextlib.suppress(OSError):
            self.connection.send(trial)

    def take(self) -> Score | Exception | None:
        """The answer; None where the process died over it."""
        try:
            result: Score | Exception | None = self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            return None
        return result

    def end(self) -> None:
        """End the process at once, whatever it does."""
        # Not SIGTERM: a training takes that as a wish to stop after the step.
        self.process.kill()
        self.process.join()
        self.connection.close()


def _with_news(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those that have answered or died; waits for the first."""
    # A process that the worker started may keep the pipe open, so its own end is waited for too.
    ready = wait([item for worker in workers for item in (worker.connection, worker.process.sentinel)])
    return [worker for worker in workers if worker.connection in ready or worker.process.sentinel in ready]


def _work(connection: Connection[Any, Any]) -> None:
    """The worker's side: an objective first, then one trial after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the driver ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(dict.fromkeys(THREAD_SETTINGS, "1"))  # before the objective imports torch
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        objective: Objective = pickle.loads(connection.recv_bytes())
        while True:
            connection.send(answer(objective, connection.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def answer(objective: Objective, trial: Trial, *, where: str = "in a worker process") -> Score | Exception:
    """Run a trial where others wait for it: an error comes back as a value that can be pickled.

    Args:
        objective: Trains.
        trial: What to train.
        where: Said in a note of the error, with the stack trace of this process.
    """
    try:
        return objective(trial.spec, seed=trial.seed, epochs=trial.epochs)
    except Exception as error:
        text = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # whatever a class of the user's does when it is copied
            return RuntimeError(text)
        error.add_note(f"{where}:\n{text}")
        return error
