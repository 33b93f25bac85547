"""The trainings of a search on many machines: each is a Ray task, and any machine may be lost.

The driver, which is the process that searches, sends out trials and takes results. It alone writes to the
storage. What a machine needs is in ``docs/how-to/search-on-a-cluster.md``.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

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

# Seconds. To connect; for trainings to stop by themselves; between two looks at the nodes; with no node.
CONNECT, GRACE, LOOK, PATIENCE = 10.0, 5.0, 10.0, 600.0


class RayBackend:
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
        if not cpus_per_trial > 0 or not gpus_per_trial >= 0:
            raise ValueError(
                "cpus_per_trial must be above 0 and gpus_per_trial at least 0, "
                f"got {cpus_per_trial} and {gpus_per_trial}"
            )
        self.address = address
        self.needs = {"CPU": float(cpus_per_trial), "GPU": float(gpus_per_trial)}
        self._connected_here = False
        self._pickled = b""
        self._shared: ObjectRef[bytes] | None = None

    # -- the backend ---------------------------------------------------------------------------

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
        self._require_a_node()
        shared, task, pending = self._share(objective), self._make_task(), PendingTrials(trials)
        running: Running = {}
        try:
            while pending or running:
                # One more for each that runs, so that no machine waits for the driver.
                while pending and len(running) < max(2, 2 * self.slots()):
                    trial = pending.take()
                    running[task.remote(shared, trial, _versions(), self.needs)] = trial
                done = self._wait(running)
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

    def slots(self) -> int:
        """How many trials the machines that are up can run at a time."""
        return sum(_fitting(node["Resources"], self.needs) for node in self._nodes())

    def __str__(self) -> str:
        """The cluster in words, for reports."""
        nodes = len(self._nodes())
        return f"{nodes} {'machine' if nodes == 1 else 'machines'} by Ray, {self.slots()} trainings at a time"

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in _ray().nodes() if node["Alive"]]

    def _make_task(self) -> Any:
        remote = _ray().remote(
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
        pickled: bytes = _ray().cloudpickle.dumps(objective)
        if self._shared is None or pickled != self._pickled:
            self._pickled, self._shared = pickled, _ray().put(pickled)
        return self._shared

    def _wait(self, running: Running) -> ObjectRef[Score | Exception]:
        """The next task that is over; gives up where there has been no machine for long."""
        last_seen = time.monotonic()
        while True:
            ready, _ = _ray().wait(list(running), num_returns=1, timeout=LOOK)
            if ready:
                found: ObjectRef[Score | Exception] = ready[0]
                return found
            if self.slots():
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > PATIENCE:
                self._require_a_node()

    def _require_a_node(self) -> None:
        if self.slots() == 0:
            wanted = " and ".join(f"{number:g} {name}" for name, number in self.needs.items() if number)
            raise TrainingError(
                f"no machine of the Ray cluster has {wanted} for a trial; start one with `ray start`, or ask "
                "for less"
            )

    # -- the connection ------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect to the cluster, where this process is not yet.

        Raises:
            TrainingError: It does not answer.
            MissingDependencyError: Ray is not installed.
        """
        ray = _ray()
        if ray.is_initialized():
            return
        _require_answer(self.address)
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address == "local":
            options["include_dashboard"] = False
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
        try:
            ray.init(address=self.address, **options)
        except (Exception, SystemExit) as error:  # Ray exits where a head vanishes while it connects
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise _no_cluster(self.address, reason) from None
        self._connected_here = True

    def close(self) -> None:
        """Disconnect, which ends what still runs there for this process."""
        self._pickled, self._shared = b"", None
        if self._connected_here:
            self._connected_here = False
            _ray().shutdown()

    def __enter__(self) -> RayBackend:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ray() -> ModuleType:
    return require("ray", extra="cluster")


def _require_answer(address: str) -> None:
    """Ask before Ray does, which tries for five minutes and then ends the process."""
    if address in ("auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdecimal():
        raise _no_cluster(address, "that is not auto, local or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, reason: str) -> TrainingError:
    return TrainingError(
        f"cannot use a Ray cluster at {address}: {reason.rstrip('.')}; run `ray start --head` on one "
        "machine, `ray start --address HOST:6379` with the same token on the others, and this on one of them"
    )


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
        result: Score | Exception = _ray().get(task)
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
    ray = _ray()
    for task in tasks:
        ray.cancel(task)  # comes like Ctrl-C: a training stops after its step and leaves nothing
    _, left = ray.wait(list(tasks), num_returns=len(tasks), timeout=GRACE)
    for task in left:
        ray.cancel(task, force=True)


def _fitting(resources: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many trials fit into what a machine has.

    Examples:
        >>> _fitting({"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.25})
        4
    """
    return min(int(resources.get(name, 0.0) / need) for name, need in needs.items() if need)


# --------------------------------------------------------------------------------- the worker's side


def _run_trial(
    objective: bytes, trial: Trial, versions: Mapping[str, str], needs: Mapping[str, float]
) -> Score | Exception:
    """One trial in a process of Ray's, which may run others before and after it.

    Raises:
        TrainingError: This machine cannot run any trial of the search.
    """
    where = f"on {socket.gethostname()}"
    if (own := _versions()) != versions:
        raise TrainingError(
            f"the versions {where} are {_listed(own)}; those of the search are {_listed(versions)}, and only "
            "equal ones give equal scores: install the same on all machines"
        )
    os.environ.update(dict.fromkeys(THREAD_SETTINGS, "1"))  # before the objective imports torch
    if not needs["GPU"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return answer(_load(objective), trial, where=where)


@lru_cache(maxsize=1)
def _load(objective: bytes) -> Objective:
    """Unpickled once in a process, as it may keep what it has opened."""
    loaded: Objective = _ray().cloudpickle.loads(objective)
    return loaded


def _versions() -> dict[str, str]:
    """Of what decides a score, without the kind of build such as ``+cpu``."""
    others = {name: version(name).partition("+")[0] for name in ("torch", "torchvision", "pillow")}
    return {"phiscale": import_module("phiscale").__version__, **others}


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
