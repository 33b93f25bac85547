"""The trainings of a search on many machines: each is a Ray task, and any machine may be lost.

The driver, which is the process that searches, sends out trials and takes results. It alone writes to the
storage. What a machine needs is in ``docs/how-to/search-on-a-cluster.md``.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from phiscale.cluster.connection import Cluster, ray_module, require_same_versions, versions
from phiscale.errors import TrainingError, require
from phiscale.search.objective import Objective, Score, Trial
from phiscale.search.pending import PendingTrials
from phiscale.search.runner import Results
from phiscale.search.workers import THREAD_SETTINGS, answer

if TYPE_CHECKING:
    from ray import ObjectRef

__all__ = ["RayBackend"]

_log = logging.getLogger(__name__)

Running = dict["ObjectRef[Score | Exception]", Trial]

GRACE = 5.0  # seconds for trainings to stop by themselves


class RayBackend(Cluster):
    """A backend that runs each trial as a Ray task, on whatever machine of a cluster has room.

    A trial whose machine or process is lost runs again elsewhere. When the driver stops or is killed, its
    tasks end. A context manager that connects for its block; without one, the first call connects. Where
    this process is connected to Ray already, that connection is used and left open.

    Args:
        address: ``"auto"`` for the cluster that this machine belongs to, ``HOST:PORT`` of its head, or
            ``"local"`` to start Ray on this machine alone.
        cpus_per_trial: Cores that a training has for itself. It computes with one thread; more are for
            processes that load images.
        gpus_per_trial: GPUs that a training has for itself; 0.5 lets two share one. With 0 it sees none.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self, address: str = "auto", *, cpus_per_trial: float = 1.0, gpus_per_trial: float = 0.0
    ) -> None:
        super().__init__(address, what="trial", cpus=cpus_per_trial, gpus=gpus_per_trial)
        self._pickled = b""
        self._shared: ObjectRef[bytes] | None = None

    def __call__(self, trials: Sequence[Trial], objective: Objective) -> Results:
        """See `phiscale.search.runner.Backend`.

        Raises:
            TrainingError: The cluster does not answer, no machine of it can run a trial, or one of them has
                other versions than this one.
            MissingDependencyError: Ray is not installed.
        """
        if not trials:
            return
        self.connect()
        self.require_a_node()
        shared, task, pending = self._share(objective), self._make_task(), PendingTrials(trials)
        running: Running = {}
        try:
            while pending or running:
                # One more for each that runs, so that no machine waits for the driver.
                while pending and len(running) < max(2, 2 * self.slots()):
                    trial = pending.take()
                    running[task.remote(shared, trial, versions(), self.needs)] = trial
                done = self.wait(list(running))
                trial = running.pop(done)
                result = _result(done)
                if isinstance(result, Score):
                    yield trial, result
                elif isinstance(result, _Lost):
                    _log.info("%s with seed %d runs again: %s", trial.spec.name, trial.seed, result.why)
                    pending.lose(trial, last=f"by {result.why}")
                else:
                    pending.fail(result)
        finally:
            _end(list(running))
        pending.raise_error()

    def __str__(self) -> str:
        """The cluster in words, for reports."""
        nodes = len(self.nodes())
        return f"{nodes} {'machine' if nodes == 1 else 'machines'} by Ray, {self.slots()} trainings at a time"

    def close(self) -> None:
        """Disconnect, which ends what still runs there for this process."""
        self._pickled, self._shared = b"", None
        super().close()

    def _make_task(self) -> Any:
        remote = ray_module().remote(
            num_cpus=self.needs["CPU"],
            num_gpus=self.needs["GPU"],
            max_retries=0,  # the driver counts, as for processes of one machine
            scheduling_strategy="SPREAD",
            name="phiscale trial",
        )
        return remote(_run_trial)

    def _share(self, objective: Objective) -> ObjectRef[bytes]:
        """The objective in the object store, put there once."""
        # Ray's pickle, which also takes what was defined in a script or a notebook.
        pickled: bytes = ray_module().cloudpickle.dumps(objective)
        if self._shared is None or pickled != self._pickled:
            self._pickled, self._shared = pickled, ray_module().put(pickled)
        return self._shared


# ------------------------------------------------------------------------------- the driver's side


class _Lost:
    """The worker or the machine of a task is gone."""

    def __init__(self, why: str) -> None:
        self.why = why


def _result(task: ObjectRef[Score | Exception]) -> Score | Exception | _Lost:
    """What a task came to.

    Raises:
        TrainingError: It could not even begin, as any trial on that machine.
    """
    exceptions = require("ray.exceptions", extra="cluster")
    try:
        result: Score | Exception = ray_module().get(task)
    except exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, TrainingError):
            raise cause from None
        reason = str(cause).strip().splitlines()[-1]
        raise TrainingError(
            f"a machine of the Ray cluster cannot run trials: {reason}; install the same packages on all"
        ) from None
    except exceptions.RayError as error:
        return _Lost(type(error).__name__)
    return result


def _end(tasks: Sequence[ObjectRef[Score | Exception]]) -> None:
    """End tasks: those that can, clean up behind them."""
    if not tasks:
        return
    ray = ray_module()
    for task in tasks:
        ray.cancel(task)  # comes like Ctrl-C: a training stops after its step and leaves nothing
    _, left = ray.wait(list(tasks), num_returns=len(tasks), timeout=GRACE)
    for task in left:
        ray.cancel(task, force=True)


# --------------------------------------------------------------------------------- the worker's side


def _run_trial(
    objective: bytes, trial: Trial, others: Mapping[str, str], needs: Mapping[str, float]
) -> Score | Exception:
    """One trial in a process of Ray's, which may run others before and after it.

    Raises:
        TrainingError: This machine cannot run any trial of the search.
    """
    require_same_versions(others, of="search", why="give equal scores")
    os.environ.update(dict.fromkeys(THREAD_SETTINGS, "1"))  # before the objective imports torch
    if not needs["GPU"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return answer(_load(objective), trial, where=f"on {socket.gethostname()}")


@lru_cache(maxsize=1)
def _load(objective: bytes) -> Objective:
    """Unpickled once in a process, as it may keep what it has opened."""
    loaded: Objective = ray_module().cloudpickle.loads(objective)
    return loaded
