"""Predictions on many machines: slices of the images are Ray tasks, and their answers come back in order.

Which machine answers, and how many there are, changes nothing: slices are cut where batches are.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiscale.cluster.connection import Cluster, ray_module, require_same_versions, versions
from phiscale.deploy.predictor import Prediction, Predictor
from phiscale.errors import ModelDirError, PhiscaleError, TrainingError, require

if TYPE_CHECKING:
    from ray import ObjectRef

__all__ = ["RayPrediction"]

SLICE = 256  # images in a task, about: work for many cores for some seconds
RETRIES = 3  # of a slice whose machine was lost

Answers = list[Prediction] | PhiscaleError


class RayPrediction(Cluster):
    """Classifies images on all machines of a Ray cluster, each with all its cores.

    A context manager as `Cluster` is. A slice of the images whose machine is lost is done again elsewhere.

    Args:
        address: See `Cluster`.
    """

    def __init__(self, address: str = "auto") -> None:
        super().__init__(address, what="prediction")

    def stream(
        self,
        open_model: Callable[[], Predictor],
        model: Predictor,
        images: Iterable[str],
        *,
        start: int = 0,
        batch_size: int = 4,
        **options: Any,
    ) -> Iterator[Prediction]:
        """What `Predictor.stream` gives, in the same order.

        Args:
            open_model: Opens the model on each machine.
            model: The same, opened here; what machines open must be equal to it.
            images: Paths that all machines see.
            start: How many images came before these.
            batch_size: Images per run of the network.
            **options: `top_k` and `exact`, see `Predictor.stream`.

        Raises:
            ModelDirError: A machine cannot open the model, or opens another one.
            TrainingError: The cluster does not answer; or images have taken several workers with them.
            MissingDependencyError: Ray is not installed.
        """
        self.connect()
        # A predictor has a thread for each core, so a task is for a whole machine.
        self.needs["CPU"] = min((node["Resources"].get("CPU", 1.0) for node in self.nodes()), default=1.0)
        self.require_a_node()
        ray = ray_module()
        shared = ray.put(ray.cloudpickle.dumps(open_model))
        task, expected = self._make_task(), _identity(model)
        running: deque[tuple[ObjectRef[Answers], list[str]]] = deque()
        slices = _slices(images, batch_size)
        try:
            while True:
                # One more for each that runs, so that no machine waits for the driver.
                for part in itertools.islice(slices, max(2, 2 * self.slots()) - len(running)):
                    settings = {"start": start, "batch_size": batch_size, **options}
                    paths = [os.fspath(Path(path).absolute()) for path in part]
                    running.append((task.remote(shared, paths, settings, expected, versions()), part))
                    start += len(part)
                if not running:
                    return
                answers, part = running.popleft()
                yield from _named(self._answers(answers), part)
        finally:
            for left, _ in running:
                ray.cancel(left, force=True)

    def _make_task(self) -> Any:
        remote = ray_module().remote(
            num_cpus=self.needs["CPU"],
            max_retries=RETRIES,
            scheduling_strategy="SPREAD",
            name="phiscale prediction",
        )
        return remote(_predict)

    def _answers(self, task: ObjectRef[Answers]) -> list[Prediction]:
        exceptions = require("ray.exceptions", extra="cluster")
        try:
            answers: Answers = ray_module().get(self.wait([task]))
        except exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise TrainingError(
                f"a slice of the images could not be done on the Ray cluster: {reason}; "
                "the same command goes on"
            ) from None
        if isinstance(answers, PhiscaleError):
            raise answers
        return answers


def _slices(images: Iterable[str], batch_size: int) -> Iterator[list[str]]:
    """Some whole batches at a time."""
    left, size = iter(images), batch_size * max(1, SLICE // batch_size)
    while part := list(itertools.islice(left, size)):
        yield part


def _named(answers: Iterable[Prediction], paths: Sequence[str]) -> Iterator[Prediction]:
    """The answers under the names that their images were given by."""
    return (replace(answer, source=path) for answer, path in zip(answers, paths, strict=True))


def _identity(model: Predictor) -> dict[str, str]:
    return {"weights": model.model.weights_sha256, "runtime": model.runtime}


# --------------------------------------------------------------------------------- the worker's side


def _predict(
    open_model: bytes,
    paths: list[str],
    options: dict[str, Any],
    expected: dict[str, str],
    others: dict[str, str],
) -> Answers:
    """A slice of the images, in a process of Ray's that keeps the model for the next one."""
    try:
        require_same_versions(others, of="command", why="give equal answers")
        model = _load(open_model)
        for name, value in _identity(model).items():
            if value != expected[name]:
                raise ModelDirError(
                    f"{socket.gethostname()} opens the model with {name} {value} and not {expected[name]}; "
                    "give all machines the same model and packages, or name a --runtime that all have"
                )
        return list(model.stream(paths, **options))
    except PhiscaleError as error:
        return error


@lru_cache(maxsize=1)
def _load(open_model: bytes) -> Predictor:
    loaded: Predictor = ray_module().cloudpickle.loads(open_model)()
    return loaded
