"""Training with all images on the device and each step as one CUDA graph: small networks on a GPU.

A small network's kernels are shorter than the time it takes to launch them: one step of 1,600 kernels
kept an H100 busy for 2.6 ms, and launching them took 25 ms. Recorded once as a CUDA graph, they are launched
together. A graph repeats itself exactly, so whatever changes from step to step is read from tables on the
device: which images, how they are shifted and mirrored, the learning rates and the weight of the moving
average.

On a CPU the same step runs without a graph, which is for tests.

It trains what `train` does with the same recipe, but for the random numbers, and leaves no files.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import deterministic

from phiscale.data.augment import Augment
from phiscale.data.loading import EpochSampler
from phiscale.data.transforms import Normalize
from phiscale.errors import TrainingError
from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess
from phiscale.training.ema import ema_decay
from phiscale.training.history import EpochRecord
from phiscale.training.meter import Meter
from phiscale.training.optim import build_optimizer, lr_factor, parameter_groups
from phiscale.training.randomness import repeatable_kernels, step_seed
from phiscale.training.recipe import Recipe

__all__ = ["LabelledImages", "train_resident", "why_not_resident"]

_STEPS_BEFORE_RECORDING = 3  # until cuDNN has chosen its kernels and the optimizer has its state
_EVAL_BATCH = 2048


@dataclass(frozen=True)
class LabelledImages:
    """Images at the network's size, and their classes.

    Attributes:
        images: (N, channels, height, width), uint8.
        labels: (N,), int64.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> LabelledImages:
        """The same on a device."""
        return LabelledImages(self.images.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)


def why_not_resident(recipe: Recipe) -> str | None:
    """The setting that keeps a recipe from `train_resident`, as text; None where it can be trained so."""
    augment = recipe.augment
    wanted: dict[str, tuple[Any, Any]] = {
        "optimizer": (recipe.optimizer, "adamw"),
        "accumulate": (recipe.accumulate, 1),
        "clip_grad_norm": (recipe.clip_grad_norm, 0),
        "mixup_alpha": (recipe.mixup_alpha, 0),
        "freeze_epochs": (recipe.freeze_epochs, 0),
        "early_stopping_patience": (recipe.early_stopping_patience, 0),
        "grad_checkpointing": (recipe.grad_checkpointing, False),
        "augment.policy": (augment.policy, "none"),
        "augment.crop_scale": (augment.crop_scale, (1.0, 1.0)),
        "augment.erasing": (augment.erasing, 0),
    }
    return next((f"{name} {has!r}" for name, (has, must) in wanted.items() if has != must), None)


def train_resident(
    net: Network,
    training: LabelledImages,
    validation: LabelledImages,
    *,
    recipe: Recipe,
    preprocess: Preprocess,
    device: str | torch.device = "cuda",
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> list[EpochRecord]:
    """Train a network on images that lie on the device.

    Args:
        net: Trained in place, on the device; left with the moving average.
        training: A last batch that is not full is left out, another one in each epoch.
        validation: Measured after each epoch, with the moving average.
        recipe: How; see `why_not_resident`.
        preprocess: Normalises the images.
        device: Where.
        on_epoch: Called after each epoch.

    Returns:
        One record per epoch.

    Raises:
        TrainingError: The recipe has a setting that this cannot do, there is no GPU or no whole batch, or
            the loss is not finite.
    """
    if (setting := why_not_resident(recipe)) is not None:
        raise TrainingError(f"images on the device are trained without {setting}; use `train`")
    if len(training) < recipe.batch_size:
        raise TrainingError("the training data make no whole batch; lower batch_size or add images")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "the trainings are planned for GPUs, and this machine has none; on a Ray cluster, give each one "
            "with --gpus-per-trial"
        )
    net.to(device).train()
    if recipe.channels_last:
        net.to(memory_format=torch.channels_last)
    training, validation = training.to(device), validation.to(device)
    history: list[EpochRecord] = []
    with _settings(recipe, device):
        step = _Step(net, training, recipe, preprocess)
        for epoch in range(recipe.epochs):
            began = time.perf_counter()
            loss, top1 = step.run_epoch(epoch)
            seconds = time.perf_counter() - began
            if not torch.isfinite(torch.tensor(loss)):
                raise TrainingError(f"the loss became {loss} in epoch {epoch + 1}; try a lower learning_rate")
            val_loss, val_top1 = step.evaluate(validation)
            record = EpochRecord(
                epoch=epoch + 1,
                learning_rate=step.last_rate(epoch),
                train_loss=loss,
                train_top1=top1,
                val_loss=val_loss,
                val_top1=val_top1,
                val_images=len(validation),
                seconds=time.perf_counter() - began,
                images_per_second=step.steps * recipe.batch_size / seconds,
            )
            history.append(record)
            if on_epoch:
                on_epoch(record)
    net.load_state_dict(step.average.state_dict())
    return history


class _Step:
    """One training step, its tables, and the graph of it."""

    def __init__(self, net: Network, data: LabelledImages, recipe: Recipe, preprocess: Preprocess) -> None:
        self.net, self.data, self.recipe = net, data, recipe
        self.device = data.images.device
        self.steps = len(data) // recipe.batch_size
        self.average = copy.deepcopy(net).requires_grad_(False)
        # A module, whose constants are on the device: recording allows no copy from the host.
        self.normalize = Normalize(preprocess).to(self.device)
        self._optimizer = build_optimizer(parameter_groups(net, recipe), recipe)
        total = recipe.epochs * self.steps
        factors = [lr_factor(step, steps_per_epoch=self.steps, recipe=recipe) for step in range(total)]
        self._rates = recipe.peak_learning_rate * torch.tensor(factors, device=self.device)
        self._forget = torch.tensor([self._new_weight(step) for step in range(total)], device=self.device)
        for group in self._optimizer.param_groups:
            group["lr"] = torch.zeros((), device=self.device)
            group["capturable"] = self.device.type == "cuda"
        shape = (self.steps, recipe.batch_size)
        self._order = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self._shift = torch.zeros((*shape, 2), dtype=torch.int64, device=self.device)
        self._mirror = torch.zeros(shape, dtype=torch.bool, device=self.device)
        self._done = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._before_recording = _STEPS_BEFORE_RECORDING

    def _new_weight(self, step: int) -> float:
        """Of the weights in their moving average; the first update copies them, as in `EmaCallback`."""
        return 1.0 if step == 0 else 1.0 - ema_decay(self.recipe.ema_decay, step)

    def last_rate(self, epoch: int) -> float:
        """Learning rate of the classifier at the last step of an epoch."""
        return float(self._rates[(epoch + 1) * self.steps - 1])

    def run_epoch(self, epoch: int) -> tuple[float, float]:
        """Train for an epoch. Returns loss and top-1 in [0, 1], as means over its images."""
        self._fill_tables(epoch)
        self._sums.zero_()
        for _ in range(self.steps):
            self._next()
        loss, right = self._sums.tolist()
        return loss / self.steps, right / (self.steps * self.recipe.batch_size)

    @torch.inference_mode()
    def evaluate(self, data: LabelledImages) -> tuple[float, float]:
        """Loss and top-1 in [0, 1] of the moving average."""
        self.average.eval()
        meter = Meter()
        for start in range(0, len(data), _EVAL_BATCH):
            part = slice(start, start + _EVAL_BATCH)
            images, labels = data.images[part], data.labels[part]
            logits = _logits(self.average, self.normalize(images), self.recipe)
            meter.add(functional.cross_entropy(logits, labels), logits, labels)
        return meter.mean()

    def _fill_tables(self, epoch: int) -> None:
        recipe, shape = self.recipe, self._order.shape
        sampler = EpochSampler(len(self.data), shuffle=True, seed=recipe.seed)
        sampler.set_epoch(epoch)
        order = torch.tensor([index for _, index in sampler][: shape[0] * shape[1]])
        generator = torch.Generator().manual_seed(step_seed(recipe.seed, epoch, 0))
        most, hflip = recipe.augment.pad_crop, recipe.augment.hflip
        self._order.copy_(order.view(shape))
        self._shift.copy_(torch.randint(-most, most + 1, (*shape, 2), generator=generator))
        self._mirror.copy_(torch.rand(shape, generator=generator) < hflip)

    def _next(self) -> None:
        """Take the next step, by the graph as soon as there is one."""
        if self._graph is not None:
            self._graph.replay()
        elif self.device.type != "cuda":
            self._take()
        elif self._before_recording > 0:
            self._before_recording -= 1
            # Off the default stream, as recording demands of what comes before it.
            stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                self._take()
            torch.cuda.current_stream(self.device).wait_stream(stream)
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._take()
            self._graph.replay()  # recording runs nothing

    def _take(self) -> None:
        row = self._done % self.steps
        chosen = self._order.index_select(0, row)[0]
        labels = self.data.labels.index_select(0, chosen)
        images = augment_batch(
            self.data.images.index_select(0, chosen),
            shift=self._shift.index_select(0, row)[0],
            mirror=self._mirror.index_select(0, row)[0],
            augment=self.recipe.augment,
        )
        self._set_rates()
        logits = _logits(self.net, self.normalize(images), self.recipe)
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._update_average()
        right = (logits.detach().argmax(1) == labels).sum()
        self._sums += torch.stack((loss.detach().double(), right.double()))
        self._done += 1

    def _set_rates(self) -> None:
        rate = self._rates.index_select(0, self._done)[0]
        for group in self._optimizer.param_groups:
            group["lr"].copy_(rate * group["lr_scale"])

    @torch.no_grad()
    def _update_average(self) -> None:
        new = self._forget.index_select(0, self._done)[0]
        averages, currents = _tensors(self.average), _tensors(self.net)
        floats = [index for index, tensor in enumerate(averages) if tensor.is_floating_point()]
        kept = [averages[index] for index in floats]
        apart = torch._foreach_sub([currents[index] for index in floats], kept)
        torch._foreach_mul_(apart, new)
        torch._foreach_add_(kept, apart)
        for average, current in zip(averages, currents, strict=True):
            if not average.is_floating_point():
                average.copy_(current)


def augment_batch(images: Tensor, *, shift: Tensor, mirror: Tensor, augment: Augment) -> Tensor:
    """Shift and mirror each image of a batch, as `TrainTransform` does to one.

    Args:
        images: (N, C, H, W), uint8.
        shift: (N, 2), int64: pixels down and to the right. The border's own colours fill the gap.
        mirror: (N,), bool.
        augment: Says which of the two there are at all.

    Returns:
        uint8 (N, C, H, W).
    """
    number, channels, height, width = images.shape
    if augment.pad_crop:
        rows = torch.arange(height, device=images.device) - shift[:, :1]
        columns = torch.arange(width, device=images.device) - shift[:, 1:]
        rows = rows.clamp(0, height - 1).view(number, 1, height, 1)
        columns = columns.clamp(0, width - 1).view(number, 1, 1, width)
        images = images.gather(2, rows.expand(number, channels, height, width))
        images = images.gather(3, columns.expand(number, channels, height, width))
    if augment.hflip:
        images = torch.where(mirror.view(-1, 1, 1, 1), images.flip(3), images)
    return images


def _logits(net: nn.Module, images: Tensor, recipe: Recipe) -> Tensor:
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    mixed = recipe.precision == "bf16-mixed"
    # The cache of converted weights would outlive the step that was recorded.
    with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed, cache_enabled=False):
        logits: Tensor = net(images.contiguous(memory_format=layout))
    return logits.float()


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


@contextmanager
def _settings(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Torch's global settings for a run, taken back afterwards."""
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), repeatable_kernels():
        torch.manual_seed(step_seed(recipe.seed, 0, 1))
        try:
            # A kernel for each new tensor, a quarter of all; nothing here reads what it did not write.
            deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            yield
        finally:
            deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
