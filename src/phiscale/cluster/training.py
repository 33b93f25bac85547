"""One training on several processes, on whatever machines of a Ray cluster have room.

Ray Train starts the processes, opens their process group (gloo on CPUs, NCCL on GPUs), watches them, and
after a loss starts all of them again, as many as there is room for. What they train, and that they go on from
the last checkpoint, is the business of the work that they are given. The driver, which is the process that
asked for the training, hears of epochs and of the end through an actor of its own.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from phiscale.cluster.connection import Cluster, ray_module, require_same_versions, versions
from phiscale.errors import PhiscaleError, TrainingError, require

if TYPE_CHECKING:
    from phiscale.training.history import EpochRecord

__all__ = ["RayTraining"]

T = TypeVar("T")
OnEpoch = Callable[["EpochRecord"], None]

SCRATCH = ".ray"  # in the model directory, while the run lasts
LOOK = 0.5  # seconds between two looks at what the workers have said
LOSSES = 10  # lost workers that a run survives
NEVER = 1e9  # seconds: growing while all is well would throw away work since the last checkpoint


class RayTraining(Cluster):
    """Runs one training on several processes of a Ray cluster.

    A context manager as `Cluster` is. When the driver stops or is killed, its workers end.

    Args:
        address: See `Cluster`.
        workers: How many processes train together. After a loss, as many of them go on as there is room for.
        cpus_per_worker: Cores for each: it computes with as many threads.
        gpus_per_worker: GPUs for each, 0 or 1.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self, address: str = "auto", *, workers: int, cpus_per_worker: int = 1, gpus_per_worker: int = 0
    ) -> None:
        super().__init__(address, what="worker", cpus=cpus_per_worker, gpus=gpus_per_worker)
        if workers < 1 or gpus_per_worker > 1:
            raise ValueError(
                f"workers must be at least 1 and gpus_per_worker at most 1, got {workers}, {gpus_per_worker}"
            )
        self.workers = workers

    def __call__(self, work: Callable[[OnEpoch], T], *, out: Path, on_epoch: OnEpoch) -> T:
        """Have all workers do some work together.

        Args:
            work: Called in every worker with what is to be called after each epoch. After a loss it is called
                again in each, and must then go on where it was.
            out: A folder that all machines see.
            on_epoch: Called here after each epoch.

        Returns:
            What `work` gave in the first worker.

        Raises:
            PhiscaleError: One worker's.
            TrainingError: The cluster does not answer or has no room for so many workers; or the run has
                lost too many of them.
            MissingDependencyError: Ray or what its part for training needs is not installed.
        """
        self.connect()
        self.require_a_node()
        if (room := self.slots()) < self.workers:
            raise TrainingError(
                f"the Ray cluster has room for {room} workers, not for {self.workers}; "
                f"start more machines with `ray start`, or give --workers {room}"
            )
        post = _on_this_machine(_Post)
        trainer = self._trainer(work, post, out / SCRATCH)
        try:
            result: T = _follow(trainer, post, on_epoch)
        finally:
            ray_module().kill(post)
            shutil.rmtree(out / SCRATCH, ignore_errors=True)
        return result

    def _trainer(self, work: Callable[[OnEpoch], Any], post: Any, scratch: Path) -> Any:
        train, torch_part = _ray_train()
        return torch_part.TorchTrainer(
            _take_part,
            train_loop_config={
                "work": ray_module().put(ray_module().cloudpickle.dumps(work)),
                "post": post,
                "versions": versions(),
                "gpu": self.needs["GPU"] > 0,
            },
            torch_config=torch_part.TorchConfig(backend="nccl" if self.needs["GPU"] else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=(1, self.workers),
                use_gpu=self.needs["GPU"] > 0,
                resources_per_worker={name: number for name, number in self.needs.items() if number},
                elastic_resize_monitor_interval_s=NEVER,
            ),
            run_config=train.RunConfig(
                name=post._actor_id.hex(),  # a name that was used before would mean that run
                storage_path=str(scratch),
                failure_config=train.FailureConfig(max_failures=LOSSES),
            ),
        )


# ------------------------------------------------------------------------------- the driver's side


class _Post:
    """Takes what workers have to say to the driver, as an actor."""

    def __init__(self) -> None:
        self.records: list[EpochRecord] = []
        self.outcome: tuple[Any] | PhiscaleError | None = None

    def tell(self, record: EpochRecord) -> None:
        """An epoch is over."""
        self.records.append(record)

    def end(self, outcome: tuple[Any] | PhiscaleError) -> None:
        """The first to come decides: after an error, others fail because one is gone."""
        self.outcome = self.outcome or outcome

    def look(self, seen: int) -> tuple[list[EpochRecord], tuple[Any] | PhiscaleError | None]:
        """The records after the first `seen`, and the outcome where there is one."""
        return self.records[seen:], self.outcome


def _on_this_machine(actor: type[Any]) -> Any:
    ray = ray_module()
    place = require("ray.util.scheduling_strategies", extra="cluster").NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=place)(actor).remote()


def _follow(trainer: Any, post: Any, on_epoch: OnEpoch) -> Any:
    """Run a trainer to its end, and say what is heard of it."""
    ray, seen = ray_module(), 0
    failure: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failure.append(error)

    # In a thread: in the main one Ray Train would take Ctrl-C for itself and end the process with 0.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while True:
        running = thread.is_alive()
        records, outcome = ray.get(post.look.remote(seen))
        for record in records:
            on_epoch(record)
        seen += len(records)
        if isinstance(outcome, PhiscaleError):
            raise outcome
        if not running:
            break
        thread.join(LOOK)
    if outcome is None:
        reason = str(failure[0]).strip().splitlines()[-1] if failure else "its workers ended without a result"
        raise TrainingError(f"the training on Ray ended: {reason}; go on with resume") from None
    return outcome[0]


def _ray_train() -> tuple[ModuleType, ModuleType]:
    """Ray Train and its part for torch, told to be quiet."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    train = require("ray.train", extra="cluster")
    return train, require("ray.train.torch", extra="cluster")


# --------------------------------------------------------------------------------- the worker's side


def _take_part(settings: Mapping[str, Any]) -> None:
    """One worker's part in the work."""
    ray, post = ray_module(), settings["post"]
    if ray.get(post.look.remote(0))[1] is not None:
        return  # started again after an error that would only come again
    try:
        require_same_versions(settings["versions"], of="command", why="train one network")
        work = ray.cloudpickle.loads(ray.get(settings["work"]))
        if not settings["gpu"]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        result = work(lambda record: ray.get(post.tell.remote(record)))
    except PhiscaleError as error:
        ray.get(post.end.remote(error))
        raise
    if ray.train.get_context().get_world_rank() == 0:
        ray.get(post.end.remote((result,)))
