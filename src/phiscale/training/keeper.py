"""After each epoch: the record, the best model so far, the checkpoint, and whether to stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess
from phiscale.training import checkpoints
from phiscale.training.checkpoints import RunState
from phiscale.training.ema import EmaCallback
from phiscale.training.history import EpochRecord, best_epoch, out_of_patience, write_history
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
    """

    def __init__(
        self,
        *,
        run: RunState,
        writer: ModelWriter,
        ema: EmaCallback | None,
        on_epoch: Callable[[EpochRecord, bool], None],
    ) -> None:
        self.run = run
        self.history = [EpochRecord.from_dict(record) for record in run.history]
        self._writer, self._ema, self._on_epoch = writer, ema, on_epoch
        self._epoch_began = self._train_ended = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store the start of a new run, so that one killed in its first epoch can go on too."""
        if not self.history:
            trainer.save_checkpoint(checkpoints.last_path(self._writer.directory))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._epoch_began, self._train_ended = time.perf_counter(), 0.0

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
        best = best_epoch(self.history) is record
        if best:
            self._writer.save(self._ema.network if self._ema else pl_module.net, self.run, record)
        write_history(self._writer.directory, self.history)
        trainer.save_checkpoint(checkpoints.last_path(self._writer.directory))
        self._on_epoch(record, best)
        if out_of_patience(self.history, self.run.recipe.early_stopping_patience):
            trainer.should_stop = True

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the run and its history into the checkpoint."""
        history = tuple(record.to_dict() for record in self.history)
        dataclasses.replace(self.run, history=history).put_into(checkpoint)

    def _record(self, task: ClassificationTask) -> EpochRecord:
        now = time.perf_counter()
        validated = self._train_ended > 0
        train_loss, train_top1 = task.train_meter.mean()
        val_loss, val_top1 = task.val_meter.mean() if validated else (None, None)
        train_seconds = (self._train_ended if validated else now) - self._epoch_began
        return EpochRecord(
            epoch=task.current_epoch + 1,
            learning_rate=task.learning_rate(task.global_step - 1),
            train_loss=train_loss,
            train_top1=train_top1,
            val_loss=val_loss,
            val_top1=val_top1,
            val_images=task.val_meter.count if validated else None,
            seconds=now - self._epoch_began,
            images_per_second=task.train_meter.count / train_seconds,
        )
