"""What a run will need: memory, time and disk, before it is begun.

Memory is counted from the network's spec; time is measured with a few real training steps on some of the
images. Docs: concepts/cost.md says how well both hold.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from phiscale.data.augment import TrainTransform
from phiscale.data.cache import cache_place, find_cache, open_cache
from phiscale.data.loading import make_loader
from phiscale.data.sources import ImageRecord
from phiscale.data.transforms import EvalTransform
from phiscale.nn.network import Network
from phiscale.pipeline.plan import FitPlan
from phiscale.pipeline.room import Room, look
from phiscale.scaling.complexity import complexity
from phiscale.training.calibrate import Clock, StepTimes, time_steps
from phiscale.training.recipe import Recipe

__all__ = ["Calibration", "Forecast", "calibrate", "forecast", "seconds_per_epoch"]

# Measured with `python -m benchmarks.forecast`: what libraries hold once they have trained; how much more
# than its tensors a step keeps (scratch space, gaps in the heap); and what no part below counts: the
# interpreter's start, and the imports of the final evaluation.
LIBRARY_BYTES = 250_000_000
TENSOR_OVERHEAD = 1.35
OTHER_SECONDS = 3.0

OPTIMIZER_STATES = {"adamw": 2, "rmsprop_tf": 2, "sgd": 1}
SAMPLE_IMAGES = 64
LEAST_BATCH = 2  # batch normalisation cannot train on one image


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured on this machine, in seconds.

    Attributes:
        steps: Of training and loading, for an image.
        decode: To put an image into the cache, all its threads together; 0 where there is no cache.
    """

    steps: StepTimes
    decode: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will need.

    Attributes:
        memory_bytes: Most resident memory of the training process, libraries and what it holds now included.
        tensor_bytes: Of it, or of the GPU's memory, the tensors of a training step.
        device_bytes: Most memory of the GPU; None where there is none.
        cache: Where decoded images are kept.
        cache_bytes: Their size; in memory it is a part of `memory_bytes`.
        checkpoint_bytes: Of one checkpoint. Three are on disk while one is written, one remains.
        model_bytes: Of the weights in the model directory.
        disk_bytes: Most that is in the model directory at one time.
        epoch_seconds: Of an epoch with its validation; None where not even a small batch fits.
        epochs: Epochs still to do.
        seconds: In total, from the scan to the final evaluation. Early stopping may make it less.
        room: What there is.
        problems: What will not fit, a sentence each.
        suggestions: Options that would make it fit.
    """

    memory_bytes: int
    tensor_bytes: int
    device_bytes: int | None
    cache: Literal["memory", "disk"] | None
    cache_bytes: int
    checkpoint_bytes: int
    model_bytes: int
    disk_bytes: int
    epoch_seconds: float | None
    epochs: int
    seconds: float | None
    room: Room
    problems: tuple[str, ...]
    suggestions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def forecast(
    plan: FitPlan,
    out: Path,
    *,
    spent: float = 0.0,
    epochs_done: int = 0,
    calibration: Calibration | None = None,
    room: Room | None = None,
    clock: Clock = time.perf_counter,
) -> Forecast:
    """Say what a run needs. Nothing is written, and torch's random state is left as it was.

    Args:
        plan: The run.
        out: Where its model directory is to be.
        spent: Seconds that scan and plan took; they are a part of the run.
        epochs_done: Epochs that a resumed run has behind it.
        calibration: Measured before; None measures now.
        room: What there is; None looks.
        clock: Gives seconds.

    Raises:
        DataError: A cache was asked for that does not fit.
    """
    began = clock()
    room = look(out) if room is None else room  # before anything below takes memory
    needs = _Needs(plan, room)
    if calibration is None and (batch := needs.batch_that_fits()) is not None:
        calibration = calibrate(plan, batch_size=batch, clock=clock)
    spent += clock() - began
    epochs = max(0, plan.recipe.epochs - epochs_done)
    epoch = None if calibration is None else _epoch_seconds(plan, calibration)
    total = (
        None if calibration is None else spent + _run_seconds(plan, calibration, epochs_done, needs.to_decode)
    )
    problems, suggestions = _advice(needs)
    return Forecast(
        memory_bytes=needs.resident(plan.recipe),
        tensor_bytes=needs.tensors(plan.recipe),
        device_bytes=needs.on_device(plan.recipe) if room.device is not None else None,
        cache=needs.place,
        cache_bytes=needs.cache_bytes,
        checkpoint_bytes=needs.checkpoint,
        model_bytes=needs.model,
        disk_bytes=needs.disk,
        epoch_seconds=epoch,
        epochs=epochs,
        seconds=total,
        room=room,
        problems=problems,
        suggestions=suggestions,
    )


def seconds_per_epoch(plan: FitPlan) -> float:
    """Seconds of one epoch, with validation, as a few steps of a network of its own let expect."""
    return _epoch_seconds(plan, calibrate(plan))


def calibrate(
    plan: FitPlan, *, batch_size: int | None = None, clock: Clock = time.perf_counter
) -> Calibration:
    """Train a network of its own for some steps on some of the images, as the run will.

    Args:
        plan: The run.
        batch_size: Images per step; None is the recipe's.
        clock: Gives seconds.
    """
    recipe = plan.recipe if batch_size is None else plan.recipe.override({"batch_size": batch_size})
    records = _spread(plan.source.split("train"), max(SAMPLE_IMAGES, recipe.batch_size))
    began = clock()
    # In memory, where the run may read a file: the system keeps that in memory as well.
    place = "off" if _cache(plan)[0] is None else "memory"
    cache = open_cache(plan.source, records, plan.preprocess, mode=place)  # type: ignore[arg-type]
    decode = (clock() - began) / len(records) if cache is not None else 0.0
    options: dict[str, Any] = {"batch_size": min(recipe.batch_size, len(records)), "cache": cache}
    loader = make_loader(
        plan.source,
        records,
        TrainTransform(plan.preprocess, recipe.augment),
        shuffle=True,
        drop_last=True,
        **options,
    )
    val_loader = make_loader(
        plan.source, records, EvalTransform(plan.preprocess), shuffle=False, drop_last=True, **options
    )
    with torch.random.fork_rng():
        net = Network(plan.spec)
    steps = time_steps(net, loader, val_loader, recipe=recipe, preprocess=plan.preprocess, clock=clock)
    del net
    gc.collect()  # trainer and task hold each other, and with them weights that the run needs the room of
    return Calibration(steps=steps, decode=decode)


# ------------------------------------------------------------------------------------------------- time


def _epoch_seconds(plan: FitPlan, measured: Calibration, *, frozen: bool = False) -> float:
    """Of an epoch; `frozen` of one in which only the classifier learns."""
    steps, workers = measured.steps, plan.recipe.workers
    train = _images_per_epoch(plan)
    # Frozen layers run forward only.
    compute = steps.validate if frozen else steps.train
    return (
        train * _overlapped(compute, steps.load, workers)
        + len(plan.source.split("val")) * _overlapped(steps.validate, steps.load_val, workers)
        + steps.save
    )


def _run_seconds(plan: FitPlan, measured: Calibration, epochs_done: int, to_decode: int) -> float:
    """Of a whole run after its plan: cache, first checkpoint, epochs, final evaluation."""
    recipe, steps = plan.recipe, measured.steps
    frozen = max(0, min(recipe.freeze_epochs, recipe.epochs) - epochs_done)
    free = max(0, recipe.epochs - epochs_done) - frozen
    last = len(plan.source.split("test") or plan.source.split("val"))
    # The evaluation decodes by itself, in one thread where the cache takes two.
    evaluation = last * (steps.validate + steps.load_val + 2 * measured.decode)
    return (
        OTHER_SECONDS
        + to_decode * measured.decode
        + steps.save
        + frozen * _epoch_seconds(plan, measured, frozen=True)
        + free * _epoch_seconds(plan, measured)
        + evaluation
    )


def _images_per_epoch(plan: FitPlan) -> int:
    """Training images that an epoch sees: whole batches, unless all of them make less than one."""
    images, batch = len(plan.source.split("train")), plan.recipe.batch_size
    return images // batch * batch or images


def _overlapped(compute: float, load: float, workers: int) -> float:
    """Seconds for an image that is loaded by `workers` processes while others are computed.

    Loading and computing share the cores: where the network keeps all of them busy, workers bring nothing.
    """
    if workers == 0:
        return compute + load
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = 1 if torch.cuda.is_available() else min(cores, torch.get_num_threads())
    return max(compute, load / workers, (compute * busy + load) / cores)


# ------------------------------------------------------------------------------------------------ memory


class _Needs:
    """Memory and disk of a plan's run in bytes, also with another recipe."""

    def __init__(self, plan: FitPlan, room: Room) -> None:
        self.plan, self.room = plan, room
        self.place, self.cache_bytes = _cache(plan)
        records = [plan.source.split(split) for split in ("train", "val")]
        filed = self.place == "disk" and all(
            find_cache(plan.source, part, plan.preprocess) is not None for part in records if part
        )
        self.to_decode = 0 if filed or self.place is None else sum(len(part) for part in records)
        cost = complexity(plan.spec)
        average = plan.recipe.ema_decay > 0
        self.model = cost.file_bytes
        self.checkpoint = cost.file_bytes * (1 + average) + 4 * cost.params * self._states(plan.recipe)
        # A file is written whole before it takes the place of the old one.
        self.disk = 3 * self.checkpoint + 2 * self.model

    @staticmethod
    def _states(recipe: Recipe) -> int:
        return OPTIMIZER_STATES[recipe.optimizer]

    def tensors(self, recipe: Recipe) -> int:
        """Of a training step, in float32: bf16 needs less."""
        return complexity(
            self.plan.spec,
            min(recipe.batch_size, len(self.plan.source.split("train"))),
            optimizer_states=self._states(recipe) + (recipe.ema_decay > 0),
            grad_checkpointing=recipe.grad_checkpointing,
        ).training_bytes

    def on_device(self, recipe: Recipe) -> int:
        """Of a step with what the allocator cannot use."""
        return round(TENSOR_OVERHEAD * self.tensors(recipe))

    def added(self, recipe: Recipe) -> int:
        """What the process takes in addition to what it holds."""
        pixels = self.cache_bytes if self.place == "memory" else 0
        batches = 1 + 2 * recipe.workers  # each worker is two batches ahead
        images = (
            batches * recipe.batch_size * self.plan.preprocess.channels * math.prod(self.plan.preprocess.size)
        )
        step = 0 if self.room.device is not None else self.on_device(recipe)
        return step + LIBRARY_BYTES + pixels + images

    def resident(self, recipe: Recipe) -> int:
        """Of the process at its peak."""
        return (self.room.resident or 0) + self.added(recipe)

    def fits(self, recipe: Recipe) -> bool:
        """Whether there is memory enough, as far as is known."""
        host = self.room.memory is None or self.added(recipe) <= self.room.memory
        return host and (self.room.device is None or self.on_device(recipe) <= self.room.device)

    def smaller_batches(self) -> Iterator[int]:
        """The recipe's batch and its halves."""
        batch = self.plan.recipe.batch_size
        yield batch
        while batch // 2 >= LEAST_BATCH:
            batch //= 2
            yield batch

    def batch_that_fits(self) -> int | None:
        """The largest of them for which there is memory."""
        recipe = self.plan.recipe
        return next((b for b in self.smaller_batches() if self.fits(replace(recipe, batch_size=b))), None)


def _cache(plan: FitPlan) -> tuple[Literal["memory", "disk"] | None, int]:
    """Where the decoded images of training and validation go, and their bytes."""
    source = plan.source
    parts = [source.split(split) for split in ("train", "val")]
    if plan.recipe.cache == "off":
        return None, 0
    per_image = _pixels_per_image(plan)
    needed = [round(len(part) * per_image) for part in parts]
    place = cache_place(max(needed), mode=plan.recipe.cache)
    return place, sum(needed) if place else 0


def _pixels_per_image(plan: FitPlan) -> float:
    """Mean bytes of a decoded image."""
    channels = plan.preprocess.channels
    if plan.report is not None:
        return plan.report.decoded_bytes / max(1, len(plan.source)) * channels / 3
    sample = _spread(plan.source.split("train"), SAMPLE_IMAGES)
    images = [plan.source.read(record) for record in sample]
    return sum(image.width * image.height for image in images) / len(images) * channels


def _spread(records: tuple[ImageRecord, ...], number: int) -> tuple[ImageRecord, ...]:
    """Some of the records, evenly over all classes."""
    step = max(1, len(records) // number)
    return records[::step][:number]


# ------------------------------------------------------------------------------------------------ advice


def _advice(needs: _Needs) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What will not fit, and what would."""
    recipe, room = needs.plan.recipe, needs.room
    problems: list[str] = []
    suggestions: list[str] = []
    if not needs.fits(recipe):
        problems.append("there is not enough free memory for this run")
        suggestions += _less_memory(needs)
    if room.disk is not None and needs.disk > room.disk:
        problems.append("there is not enough free space on disk for its checkpoints")
        suggestions.append("--out on another disk")
    return tuple(problems), tuple(suggestions)


def _less_memory(needs: _Needs) -> Iterator[str]:
    """Options with which the run would fit."""
    recipe = needs.plan.recipe
    if (batch := needs.batch_that_fits()) is not None:
        yield f"--batch-size {batch} --set accumulate={recipe.accumulate * recipe.batch_size // batch}"
    if not recipe.grad_checkpointing and needs.fits(replace(recipe, grad_checkpointing=True)):
        yield "--set grad_checkpointing=true"
    if needs.place == "memory" and needs.cache_bytes > needs.on_device(recipe):
        yield "--set cache=disk"
    beside = needs.added(recipe) - needs.on_device(recipe) if needs.room.device is None else 0
    free = needs.room.memory if needs.room.device is None else needs.room.device
    # A budget does not count the moving average, a further copy of the weights.
    average = needs.model if recipe.ema_decay > 0 else 0
    limit = ((free or 0) - beside) / TENSOR_OVERHEAD - average
    if needs.plan.weights is None and limit > 0:
        yield f"--training-memory {int(limit / 1e6)}MB, which takes a smaller network"
