"""What a backend still has to run, and the first error, which is told when the rest is done."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from phiscale.errors import TrainingError
from phiscale.search.objective import Trial

__all__ = ["ATTEMPTS", "PendingTrials"]

ATTEMPTS = 3


class PendingTrials:
    """The trials that wait for a worker; true while there are any.

    Args:
        trials: In the order in which they are handed out.
    """

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._waiting = deque(trials)
        self._lost = Counter[str]()
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Trial:
        """The next one."""
        return self._waiting.popleft()

    def lose(self, trial: Trial, *, last: str) -> None:
        """A trial's worker is gone: it waits again, until `ATTEMPTS` workers are gone over it.

        Args:
            trial: What the worker was to train.
            last: What is known of the worker's end, as the end of a sentence.
        """
        self._lost[trial.key] += 1
        if self._lost[trial.key] < ATTEMPTS:
            self._waiting.append(trial)
            return
        self.fail(
            TrainingError(
                f"the process that trained {trial.spec.name} with seed {trial.seed} died {ATTEMPTS} times, "
                f"last {last}; if memory ran out, take fewer workers or smaller batches"
            )
        )

    def fail(self, error: Exception) -> None:
        """A trial gives no result. Of several errors the first counts."""
        self._error = self._error or error

    def raise_error(self) -> None:
        """Raise the error that was told, if there was one."""
        if self._error is not None:
            raise self._error
