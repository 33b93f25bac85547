"""Ctrl-C and SIGTERM: finish the step, then stop."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl

__all__ = ["Interrupted", "StopCallback", "StopSignals"]


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """Training was asked to stop; raised between two steps, or at once by a second signal."""


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a wish to stop, the second into `Interrupted` at once.

    A context manager; outside the main thread, where Python takes no signals, it does nothing.

    Attributes:
        requested: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._owner = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A loader's worker process inherits this handler. Ctrl-C reaches it too, and must not end
            # it before the step is done; SIGTERM is how its loader ends it.
            if number == signal.SIGTERM:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
            return
        if self.requested:
            raise Interrupted
        self.requested = True


class StopCallback(pl.Callback):
    """Raises `Interrupted` after the step in which a signal came."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop between two training steps."""
        self._check()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stop between two validation batches."""
        self._check()

    def _check(self) -> None:
        # Not trainer.should_stop: that runs a validation and ends the epoch as if it were whole.
        if self._signals.requested:
            raise Interrupted
