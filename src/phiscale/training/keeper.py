"""After each epoch: the record, the best model so far, the checkpoint, and whether to stop.

And within an epoch: a checkpoint now and then, and where the time goes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess
from phiscale.training import checkpoints
from phiscale.training.checkpoints import EpochPart, RunState
from phiscale.training.clock import StepClock
from phiscale.training.ema import EmaCallback
from phiscale.training.history import EpochRecord, best_epoch, out_of_patience, write_history
from phiscale.training.ranks import global_sum
from phiscale.training.signals import StopSignals
from phiscale.training.task import ClassificationTask
from phiscale.weights import model_dir

__all__ = ["ModelWriter", "RunKeeper"]


@dataclass(frozen=True, kw_only=True)
class ModelWriter:
    """Writes the model directory of a run.

    Attributes:
        directory: Where to.
        preprocess: How images were prepared.
        provenance: Facts about the run, as plain values.
    """

    directory: Path
    preprocess: Preprocess
    provenance: Mapping[str, Any]

    def save(self, net: Network, run: RunState, record: EpochRecord) -> None:
        """Write the network of an epoch, with its recipe and what the epoch gave."""
        training = {"recipe": run.recipe.to_dict(), **record.to_dict()}
        model_dir.save(
            net,
            self.directory,
            classes=run.classes,
            preprocess=self.preprocess,
            provenance={**self.provenance, "training": training},
        )


class RunKeeper(pl.Callback):
    """Keeps the history, the best model and the checkpoints of a run, and stops it early.

    Args:
        run: The run, with the epochs that it already has.
        writer: Writes the model directory.
        ema: The average to save, or None to save the network itself.
        on_epoch: Called with each record, and whether it is the best so far, once all is on disk.
        signals: A signal to stop is answered with a checkpoint first.
        within_epochs: Whether a run can go on within an epoch.
    """

    def __init__(
        self,
        *,
        run: RunState,
        writer: ModelWriter,
        ema: EmaCallback | None,
        on_epoch: Callable[[EpochRecord, bool], None],
        signals: StopSignals,
        within_epochs: bool,
    ) -> None:
        self.run = run
        self.history = [EpochRecord.from_dict(record) for record in run.history]
        self._writer, self._ema, self._on_epoch = writer, ema, on_epoch
        self._signals = signals
        self._stored_every = 60 * run.recipe.checkpoint_minutes if within_epochs else 0.0
        self._epoch_began = self._train_ended = self._stored_at = 0.0
        self._clock = StepClock()
        self._batches = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store the start of a new run, so that one killed in its first epoch can go on too."""
        part = self.run.part
        if not self.history and not part.batches:
            trainer.save_checkpoint(checkpoints.last_path(self._writer.directory))
        # Within an epoch, its start is not announced again.
        self._begin_epoch(pl_module.device, part)
        self._stored_at = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._begin_epoch(pl_module.device, EpochPart())

    def on_train_batch_start(self, *_: Any) -> None:
        """Note that the images are here."""
        self._clock.step_begins()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Store a checkpoint if it is time, or if the run is about to be stopped."""
        self._clock.step_ends()
        self._batches = batch_idx + 1
        if self._is_time(trainer.num_training_batches):
            self._store(trainer)
            self._clock.go_on()

    def _begin_epoch(self, device: torch.device, part: EpochPart) -> None:
        self._epoch_began, self._train_ended = time.perf_counter() - part.seconds, 0.0
        self._batches = part.batches
        self._clock = StepClock(
            device=device, input_seconds=part.input_seconds, step_seconds=part.step_seconds
        )

    def _is_time(self, batches_per_epoch: float) -> bool:
        """Whether to store a checkpoint after this batch."""
        # Gradients that are still being added up are in no checkpoint. The last batch's is the epoch's.
        whole_step = self._batches % self.run.recipe.accumulate == 0
        if not self._stored_every or not whole_step or self._batches >= batches_per_epoch:
            return False
        return self._signals.requested or time.perf_counter() - self._stored_at >= self._stored_every

    def _store(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(checkpoints.last_path(self._writer.directory))
        self._stored_at = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note when training ended and validation began."""
        self._train_ended = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write everything that an epoch leaves behind.

        The model goes before the checkpoint: killed between the two, the run does the epoch again and
        writes the same model; the other way round, the checkpoint would know a best model that is on
        no disk.
        """
        assert isinstance(pl_module, ClassificationTask)
        record = self._record(pl_module)
        self.history.append(record)
        self._batches = 0
        best = best_epoch(self.history) is record
        if best and trainer.is_global_zero:
            self._writer.save(self._ema.network if self._ema else pl_module.net, self.run, record)
        if trainer.is_global_zero:
            write_history(self._writer.directory, self.history)
        self._store(trainer)
        self._on_epoch(record, best)
        if out_of_patience(self.history, self.run.recipe.early_stopping_patience):
            trainer.should_stop = True

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the run and its history into the checkpoint."""
        history = tuple(record.to_dict() for record in self.history)
        dataclasses.replace(self.run, history=history, part=self._part()).put_into(checkpoint)

    def _part(self) -> EpochPart:
        if not self._batches:
            return EpochPart()
        return EpochPart(
            batches=self._batches,
            seconds=time.perf_counter() - self._epoch_began,
            input_seconds=self._clock.input_seconds,
            step_seconds=self._clock.step_seconds,
        )

    def _record(self, task: ClassificationTask) -> EpochRecord:
        now = time.perf_counter()
        validated = self._train_ended > 0
        train_loss, train_top1 = task.train_meter.mean()
        val_loss, val_top1 = task.val_meter.mean() if validated else (None, None)
        meters = (task.train_meter, task.val_meter)
        images, val_images = (float(global_sum(torch.tensor(float(meter.count)))) for meter in meters)
        train_seconds = (self._train_ended if validated else now) - self._epoch_began
        seconds = now - self._epoch_began
        return EpochRecord(
            epoch=task.current_epoch + 1,
            learning_rate=task.learning_rate(task.global_step - 1),
            train_loss=train_loss,
            train_top1=train_top1,
            val_loss=val_loss,
            val_top1=val_top1,
            val_images=round(val_images) if validated else None,
            seconds=seconds,
            images_per_second=images / train_seconds,
            input_share=self._clock.input_seconds / seconds,
            step_share=self._clock.step_seconds / seconds,
        )
