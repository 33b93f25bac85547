"""A model's runtimes in the order in which they are tried, so that the death of one costs no answer."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.runtimes.messages import last_line
from phiscale.errors import MissingDependencyError, ModelDirError, PhiscaleError

if TYPE_CHECKING:
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["Candidate", "RuntimeChain"]

logger = logging.getLogger("phiscale.deploy")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A runtime that may be opened.

    Attributes:
        name: What messages call it.
        open: Opens it; raises ModelDirError or MissingDependencyError where that cannot be done.
    """

    name: str
    open: Callable[[], Runtime]


class RuntimeChain:
    """Runs the first candidate that works; when it dies in the middle of the work, the next one goes on.

    A call may come from any thread. It gives the answers of one runtime, whichever threads see its death.

    Args:
        candidates: What may be opened, the best first. The first that opens is taken; what does not open is
            left aside with a warning.
        fallback: Opened only when all candidates have died.
        path: What messages call the model.

    Raises:
        ModelDirError: No candidate opens, and the last of them is damaged.
        MissingDependencyError: No candidate opens, and the engine of the last is not installed.
    """

    def __init__(
        self, candidates: Sequence[Candidate], *, fallback: Candidate | None = None, path: Path
    ) -> None:
        self._path = path
        self._waiting = deque(candidates)
        self._lock = threading.Lock()
        self._now = self._open_next()
        if fallback is not None:
            self._waiting.append(fallback)

    @property
    def name(self) -> str:
        """Of the candidate that works at present."""
        return self._now.name

    @property
    def runtime(self) -> Runtime:
        """What works at present."""
        return self._now.runtime

    def __call__(self, images: NDArray[np.uint8], *, many: bool = False) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            images: (N, H, W, C), prepared up to normalisation.
            many: Whether more calls come at the same time, from other threads; then the runtime is set up
                for throughput rather than for a quick answer.

        Returns:
            Probabilities (N, K).

        Raises:
            ModelDirError: No runtime is left that works.
        """
        while True:
            opened = self._now
            try:
                scores = opened.run(images, many=many)
            except Exception as error:  # the exceptions of engines share no base
                problem = f"{opened.name} failed: {last_line(error)}"
                self._replace(opened, problem, f"no runtime works for {self._path}: {problem}")
                continue
            if np.isfinite(scores).all():
                return scores
            broken = f"the network in {self._path} gives NaN; its weights are broken, train again"
            self._replace(opened, f"{opened.name} gives NaN", broken)

    def _replace(self, dead: _Opened, problem: str, no_other: str) -> None:
        """Take the next candidate, unless another thread has done so already."""
        with self._lock:
            if self._now is not dead:
                return
            if not self._waiting:
                raise ModelDirError(no_other)
            try:
                self._now = self._open_next()
            except PhiscaleError as error:
                raise ModelDirError(f"{problem}, and then: {error}") from None
            logger.warning("%s; going on with %s", problem, self._now.name)

    def _open_next(self) -> _Opened:
        """Open the next candidate that can be opened; there must be one."""
        while True:
            candidate = self._waiting.popleft()
            try:
                return _Opened(candidate.name, candidate.open())
            except (ModelDirError, MissingDependencyError) as error:
                if not self._waiting:
                    raise
                logger.warning("%s is left aside: %s", candidate.name, error)


class _Opened:
    """A runtime with what is made of it when it is wanted: one for throughput, or a lock around it."""

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self.runtime = runtime
        self._for_throughput: Callable[[], Runtime] | None = getattr(runtime, "for_throughput", None)
        self._lock = threading.Lock()
        self._many: Runtime | None = None

    def run(self, images: NDArray[np.uint8], *, many: bool) -> NDArray[np.float32]:
        if self._for_throughput is None:
            # Nothing says that threads may share it; and it uses all cores on each call, as PyTorch does.
            with self._lock:
                return self.runtime(images)
        if not many:
            return self.runtime(images)
        with self._lock:
            if self._many is None:
                self._many = self._for_throughput()
        return self._many(images)
