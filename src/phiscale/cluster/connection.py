"""The way to a Ray cluster: connecting, what its machines have, and whether their packages are the same."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from phiscale.errors import TrainingError, require

if TYPE_CHECKING:
    from ray import ObjectRef

__all__ = ["Cluster", "fitting", "listed", "ray_module", "require_same_versions", "versions"]

T = TypeVar("T")

# Seconds. To connect; between two looks at the nodes; with no node.
CONNECT, LOOK, PATIENCE = 10.0, 10.0, 600.0


class Cluster:
    """A Ray cluster, and what each piece of work needs there for itself.

    A context manager that connects for its block; without one, the first call that needs it connects. Where
    this process is connected to Ray already, that connection is used and left open.

    Args:
        address: ``"auto"`` for the cluster that this machine belongs to, ``HOST:PORT`` of its head, or
            ``"local"`` to start Ray on this machine alone.
        what: What a piece of work is called in messages.
        cpus: Cores for each.
        gpus: GPUs for each; 0.5 lets two share one.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(self, address: str = "auto", *, what: str, cpus: float = 1.0, gpus: float = 0.0) -> None:
        if not cpus > 0 or not gpus >= 0:
            raise ValueError(
                f"cpus_per_{what} must be above 0 and gpus_per_{what} at least 0, got {cpus} and {gpus}"
            )
        self.address, self.what = address, what
        self.needs = {"CPU": float(cpus), "GPU": float(gpus)}
        self._connected_here = False

    def slots(self) -> int:
        """How many of them the machines that are up can run at a time."""
        return sum(fitting(node["Resources"], self.needs) for node in self.nodes())

    def nodes(self) -> list[dict[str, Any]]:
        """The machines that are up, as Ray describes them."""
        return [node for node in ray_module().nodes() if node["Alive"]]

    def require_a_node(self) -> None:
        """Check that some machine has room for at least one.

        Raises:
            TrainingError: None has.
        """
        if self.slots() == 0:
            wanted = " and ".join(f"{number:g} {name}" for name, number in self.needs.items() if number)
            raise TrainingError(
                f"no machine of the Ray cluster has {wanted} for a {self.what}; start one with `ray start`, "
                "or ask for less"
            )

    def wait(self, tasks: list[ObjectRef[T]]) -> ObjectRef[T]:
        """The next task that is over.

        Raises:
            TrainingError: There has been no machine for long.
        """
        last_seen = time.monotonic()
        while True:
            ready, _ = ray_module().wait(tasks, num_returns=1, timeout=LOOK)
            if ready:
                found: ObjectRef[T] = ready[0]
                return found
            if self.slots():
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > PATIENCE:
                self.require_a_node()

    def connect(self) -> None:
        """Connect to the cluster, where this process is not yet.

        Raises:
            TrainingError: It does not answer.
            MissingDependencyError: Ray is not installed.
        """
        ray = ray_module()
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
        if self._connected_here:
            self._connected_here = False
            ray_module().shutdown()

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ray_module() -> ModuleType:
    """Ray, imported.

    Raises:
        MissingDependencyError: It is not installed.
    """
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


def fitting(resources: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How often some needs fit into what a machine has.

    Examples:
        >>> fitting({"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.25})
        4
    """
    return min(int(resources.get(name, 0.0) / need) for name, need in needs.items() if need)


def versions() -> dict[str, str]:
    """Versions of what decides a score, without the kind of build such as ``+cpu``."""
    others = {name: version(name).partition("+")[0] for name in ("torch", "torchvision", "pillow")}
    return {"phiscale": import_module("phiscale").__version__, **others}


def listed(versions: Mapping[str, str]) -> str:
    """Versions as text."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def require_same_versions(others: Mapping[str, str], *, of: str, why: str) -> None:
    """Check that this machine has the packages of another.

    Args:
        others: `versions` there.
        of: Whose they are, as in "those of the search".
        why: What equal ones are for.

    Raises:
        TrainingError: They differ.
    """
    if (own := versions()) != others:
        raise TrainingError(
            f"the versions on {socket.gethostname()} are {listed(own)}; those of the {of} are "
            f"{listed(others)}, and only equal ones {why}: install the same on all machines"
        )
