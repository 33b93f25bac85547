"""What a person sees while training: one bar for the whole run, one line per epoch."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from phiscale.training.history import EpochRecord
from phiscale.training.meter import Meter

__all__ = ["ProgressCallback", "describe"]

# Below this share of an epoch, more effort for the input would not be noticed.
_NOTABLE_WAIT = 0.1
_HINT = (
    "training waits for images: give it workers (--set workers=4), keep decoded images (--set cache=disk), "
    "or shrink and pack them (phiscale data pack --image-size)"
)

# Often enough to look alive; drawing and reading the loss from the device cost time.
_SECONDS_BETWEEN_UPDATES = 0.5


def describe(record: EpochRecord, *, epochs: int, best: bool) -> str:
    """One line about an epoch."""
    line = (
        f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  "
        f"train loss {record.train_loss:.4f} top-1 {record.train_top1:6.2%}"
    )
    if record.val_loss is not None and record.val_top1 is not None:
        line += f"  val loss {record.val_loss:.4f} top-1 {record.val_top1:6.2%}"
    line += f"  {record.seconds:.1f} s  {record.images_per_second:.0f} images/s"
    if _waits(record):
        line += f"  {record.input_share:.0%} waiting for images"
    return f"{line}  best" if best else line


def _waits(record: EpochRecord) -> bool:
    return record.input_share is not None and record.input_share >= _NOTABLE_WAIT


class ProgressCallback(pl.Callback):
    """Draws on standard error, so that standard output stays free for results.

    Args:
        epochs: Epochs of the run.
        steps_per_epoch: Batches in an epoch.
        console: Where to draw. What is not a terminal gets the lines without the bar.
    """

    def __init__(self, *, epochs: int, steps_per_epoch: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._epochs, self._steps = epochs, steps_per_epoch
        self._drawn_at = 0.0
        self._hinted = False
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[speed]}  {task.fields[loss]}"),
            console=self.console,
            transient=True,
            refresh_per_second=2,
            disable=not self.console.is_terminal,
        )

    def report(self, record: EpochRecord, *, best: bool) -> None:
        """Print the line of an epoch."""
        line = describe(record, epochs=self._epochs, best=best)
        self.console.print(line, highlight=False, soft_wrap=True, style="bold" if best else None)
        if _waits(record) and not self._hinted:
            self._hinted = True
            self.console.print(_HINT, highlight=False, soft_wrap=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the bar, on a resumed run where it stood."""
        done = trainer.current_epoch * self._steps
        self._progress.start()
        self._task = self._progress.add_task(
            "training", total=self._epochs * self._steps, completed=done, speed="", loss=""
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, at most twice a second."""
        now = time.monotonic()
        if self._task is None or self._progress.disable or now - self._drawn_at < _SECONDS_BETWEEN_UPDATES:
            return
        self._drawn_at = now
        meter = getattr(pl_module, "train_meter", None)
        loss: Tensor | None = meter.last_loss if isinstance(meter, Meter) else None
        speed = self._progress.tasks[0].speed
        self._progress.update(
            self._task,
            completed=trainer.current_epoch * self._steps + batch_idx + 1,
            description=f"epoch {trainer.current_epoch + 1}/{self._epochs}",
            speed=f"{speed * len(batch[1]):.0f} images/s" if speed else "",
            loss=f"loss {loss.item():.3f}" if loss is not None else "",
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away."""
        self._progress.stop()

    def on_exception(self, *_: Any) -> None:
        """Take the bar away."""
        self._progress.stop()
