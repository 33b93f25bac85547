"""Where the time of an epoch goes: waiting for images, and training steps."""

from __future__ import annotations

import time

import torch

__all__ = ["StepClock"]


class StepClock:
    """Adds up the time between steps, which is spent waiting for images, and that of the steps.

    A GPU works on while the next images are awaited, and only when it has nothing left to do is time lost: so
    there a wait counts if the GPU is idle when the images come, and what does not count belongs to the steps.

    Args:
        device: Where the steps are computed.
        input_seconds: Waited so far, where an epoch is gone on with.
        step_seconds: Of steps so far.
    """

    def __init__(
        self,
        *,
        device: torch.device | None = None,
        input_seconds: float = 0.0,
        step_seconds: float = 0.0,
    ) -> None:
        self.input_seconds, self.step_seconds = input_seconds, step_seconds
        self._on_gpu = device is not None and device.type == "cuda"
        self._since = time.perf_counter()

    def step_begins(self) -> None:
        """The images are here."""
        waited = self._lap()
        if self._on_gpu and not torch.cuda.current_stream().query():
            self.step_seconds += waited
        else:
            self.input_seconds += waited

    def step_ends(self) -> None:
        """The step is done, or all of it is on its way to the GPU."""
        self.step_seconds += self._lap()

    def go_on(self) -> None:
        """Leave out what was done since the step ended, such as storing a checkpoint."""
        self._lap()

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds
