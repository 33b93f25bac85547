"""How long a training step takes on this machine: a few real ones, on real images."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess
from phiscale.training.ema import EmaCallback
from phiscale.training.recipe import Recipe
from phiscale.training.signals import Interrupted, StopCallback, StopSignals
from phiscale.training.task import ClassificationTask
from phiscale.training.train import fit_task, prepared

__all__ = ["StepTimes", "time_steps"]

WARM_UP_BATCHES = 2
LEAST_BATCHES, MOST_BATCHES = 2, 12
ENOUGH_SECONDS = 3.0
_ENDLESS = 10**6  # epochs; the clock ends the run

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds on one thread of loading and on the device, per image unless said otherwise.

    Attributes:
        train: Of a training step: network, optimizer, moving average.
        load: Loading an image for training.
        validate: Of the network without gradients.
        load_val: Loading an image for validation.
        save: To write what an epoch leaves behind, for an epoch.
    """

    train: float
    load: float
    validate: float
    load_val: float
    save: float


def time_steps(
    net: Network,
    train_loader: DataLoader[Any],
    val_loader: DataLoader[Any],
    *,
    recipe: Recipe,
    preprocess: Preprocess,
    clock: Clock = time.perf_counter,
) -> StepTimes:
    """Train for a few batches as `train` does, and time them; the weights hardly move.

    Args:
        net: Any network of the kind that is to be trained; it is left on the device.
        train_loader: Whole batches, loaded in this process. It is gone through as often as needed.
        val_loader: The same without augmentation.
        recipe: Its optimizer, average, precision and layout; not its schedule.
        preprocess: Normalises the batches.
        clock: Gives seconds.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came.
        TrainingError: There is not enough memory for a batch.
    """
    still = {"epochs": _ENDLESS, "freeze_epochs": 0, "warmup_epochs": 0, "early_stopping_patience": 0}
    recipe = recipe.override({**still, "learning_rate": 1e-12})
    task = ClassificationTask(net, recipe=recipe, preprocess=preprocess, steps_per_epoch=len(train_loader))
    timer = _StepTimer(clock)
    average = [EmaCallback(recipe.ema_decay)] if recipe.ema_decay > 0 else []
    with prepared(net, recipe), StopSignals() as signals:
        # The timer last: the update of the average belongs to the step.
        fit_task(task, train_loader, None, [*average, StopCallback(signals), timer], signals, None)
        if not signals.requested:
            load_val, validate = _time_validation(task, val_loader, signals, clock)
    if signals.requested:
        raise KeyboardInterrupt
    return StepTimes(
        train=statistics.median(timer.steps),
        load=statistics.median(timer.loads),
        validate=validate,
        load_val=load_val,
        save=_time_save(task, timer.optimizer_state, clock),
    )


class _StepTimer(pl.Callback):
    """Notes seconds per image between and within steps, and ends the run when it has seen enough."""

    def __init__(self, clock: Clock) -> None:
        self.loads: list[float] = []
        self.steps: list[float] = []
        self.optimizer_state: dict[str, Any] = {}
        self._clock = clock
        self._batches = 0
        self._ended = self._began = self._measured_from = clock()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note when loading ended."""
        self._began = self._clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the step took, or end the run."""
        _wait(pl_module.device)
        now, images = self._clock(), len(batch[1])
        self._batches += 1
        if self._batches <= WARM_UP_BATCHES:
            self._measured_from = now
        else:
            self.loads.append((self._began - self._ended) / images)
            self.steps.append((now - self._began) / images)
        self._ended = self._clock()
        if _enough(len(self.steps), now - self._measured_from):
            self.optimizer_state = trainer.optimizers[0].state_dict()
            raise Interrupted


def _enough(batches: int, seconds: float) -> bool:
    return batches >= MOST_BATCHES or (batches >= LEAST_BATCHES and seconds >= ENOUGH_SECONDS)


def _time_validation(
    task: ClassificationTask, loader: DataLoader[Any], signals: StopSignals, clock: Clock
) -> tuple[float, float]:
    """Seconds of an image: to load it, and in the network."""
    loads: list[float] = []
    runs: list[float] = []
    task.eval()
    began = clock()
    with torch.inference_mode():
        while not (_enough(len(runs) - 1, clock() - began) or signals.requested):
            loaded_from = clock()
            for number, (images, labels) in enumerate(loader):
                loads.append((clock() - loaded_from) / len(labels))
                ran_from = clock()
                task.validation_step((images.to(task.device), labels.to(task.device)), number)
                _wait(task.device)
                runs.append((clock() - ran_from) / len(labels))
                if _enough(len(runs) - 1, clock() - began) or signals.requested:
                    break
                loaded_from = clock()
    return statistics.median(loads), statistics.median(runs[1:] or runs)


def _time_save(task: ClassificationTask, optimizer_state: dict[str, Any], clock: Clock) -> float:
    """Seconds to serialise a checkpoint and a model."""
    weights: dict[str, Tensor] = task.net.state_dict()
    average = [weights] if task.recipe.ema_decay > 0 else []
    began = clock()
    torch.save([weights, *average, optimizer_state], io.BytesIO())
    torch.save(weights, io.BytesIO())
    return clock() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
