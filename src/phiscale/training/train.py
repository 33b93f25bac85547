"""From a network, data and a recipe to a trained model directory."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader

from phiscale.errors import TrainingError
from phiscale.nn.layers import set_rows
from phiscale.nn.network import Network
from phiscale.nn.sync_norm import synchronized_norms
from phiscale.preprocess import Preprocess
from phiscale.training import checkpoints
from phiscale.training.allocator import keep_freed_memory
from phiscale.training.checkpoints import RunState, SafeCheckpointIO
from phiscale.training.ema import EmaCallback
from phiscale.training.fast_layers import fast_layers
from phiscale.training.history import HISTORY, EpochRecord, best_epoch, out_of_patience
from phiscale.training.keeper import ModelWriter, RunKeeper
from phiscale.training.progress import ProgressCallback
from phiscale.training.randomness import repeatable_kernels
from phiscale.training.ranks import MeanStatistics, RowsOfBatches, my_share, trainer_options
from phiscale.training.recipe import Recipe
from phiscale.training.signals import Interrupted, StopCallback, StopSignals
from phiscale.training.task import ClassificationTask
from phiscale.weights.files import write_text

__all__ = ["RECIPE", "TrainResult", "fit_task", "prepared", "train"]

RECIPE = "recipe.yaml"
Batches = DataLoader[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to.

    Attributes:
        directory: The model directory, with the best network so far; without one when the run was
            interrupted in its first epoch.
        history: One record per finished epoch, those before a resume included.
        best: The epoch whose network is in the directory; None before the first has finished.
        interrupted: Whether Ctrl-C or SIGTERM ended it; `train` with ``resume=True`` goes on.
        stop_requested: Whether one of them came, be it too late to interrupt anything.
        stopped_early: Whether early stopping ended it.
        seconds: Of this call.
    """

    directory: Path
    history: tuple[EpochRecord, ...]
    best: EpochRecord | None
    interrupted: bool
    stop_requested: bool
    stopped_early: bool
    seconds: float


def train(
    net: Network,
    train_loader: Batches,
    val_loader: Batches | None,
    *,
    recipe: Recipe,
    out: str | Path,
    classes: Sequence[str],
    preprocess: Preprocess,
    provenance: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainResult:
    """Train a network; `out` is a model directory that opens at any time from the first epoch on.

    After each epoch the best network so far (its moving average), ``history.json`` and
    ``checkpoints/last.ckpt`` are written, the latter also within an epoch, see `Recipe.checkpoint_minutes`.
    On a CPU, a run that was killed at any moment and resumed ends with the same weights, bit for bit, as an
    unbroken one. torch's global random state is left as it was.

    Where a process group of `torch.distributed` is open, all its processes call this with the same arguments,
    but for the share of the batches that their loaders have, and train one network together: see
    `phiscale.training.ranks`. `out` is then a folder that all of them see; the first of them writes. A run
    goes on with any number of processes.

    Args:
        net: The network, trained in place, where `resume` loads the stored weights first. Dropout and
            drop path are its own. Left with the moving average of the last epoch, or the raw weights
            when interrupted.
        train_loader: Batches of (uint8 (N, C, H, W), int64 (N,)). Its order must depend on seed and
            epoch only, the epoch being given by its sampler's ``set_epoch``. There are checkpoints within an
            epoch only where its batch sampler has ``skip``, as that of `phiscale.data.loading` has.
        val_loader: The same without augmentation; None trains without validation, and saves the last
            network as the best.
        recipe: How to train; stored in the directory as ``recipe.yaml`` and in its provenance. Nothing is
            tuned here: precision and layers are what it says.
        out: The model directory.
        classes: Names of the classes.
        preprocess: Normalises the batches, and is stored with the model.
        provenance: Facts to store with the model.
        resume: Go on from the last checkpoint in `out`. A run that is complete is left as it is.
        overwrite: Whether a run in `out` may be thrown away when not resuming.
        progress: Whether to draw a bar and print a line per epoch on standard error.
        on_epoch: Called after each epoch, once everything is on disk, in the first process.

    Raises:
        TrainingError: The loss is not finite; there is nothing to resume, or another run; `out` holds a
            run already; network, classes and loader do not fit together.
        ModelDirError: `out` cannot be written.
    """
    began, directory = time.perf_counter(), Path(out)
    run = _describe_run(net, train_loader, recipe, classes)
    stored = _open_directory(directory, run, resume=resume, overwrite=overwrite)
    steps = math.ceil(len(train_loader) / recipe.accumulate)
    share = my_share()
    rows = RowsOfBatches(train_loader) if share.count > 1 else None
    task = ClassificationTask(net, recipe=recipe, preprocess=preprocess, steps_per_epoch=steps, rows=rows)
    if stored:
        run = RunState.take_from(stored[1])
        net.load_state_dict(_averaged_weights(stored[1]))
    done = tuple(EpochRecord.from_dict(record) for record in run.history)
    if _complete(done, recipe):
        return _result(directory, done, recipe, began, interrupted=False, stop_requested=False)

    bar = ProgressCallback(epochs=recipe.epochs, steps_per_epoch=len(train_loader)) if progress else None
    bar = bar if share.rank == 0 else None
    ema = EmaCallback(recipe.ema_decay) if recipe.ema_decay > 0 else None

    def report(record: EpochRecord, best: bool) -> None:
        if bar:
            bar.report(record, best=best)
        if on_epoch and share.rank == 0:
            on_epoch(record)

    writer = ModelWriter(directory=directory, preprocess=preprocess, provenance=dict(provenance or {}))
    with prepared(net, recipe), StopSignals() as signals:
        keeper = RunKeeper(
            run=run,
            writer=writer,
            ema=ema,
            on_epoch=report,
            signals=signals,
            # By the clock of one process alone, several would not store at the same batch.
            within_epochs=_can_skip(train_loader) and share.count == 1,
        )
        # The average before the keeper: what comes after it sees the raw weights back in place.
        means = MeanStatistics() if rows and not recipe.sync_batch_norm else None
        everyone: tuple[pl.Callback | None, ...] = (means, ema, keeper, bar, StopCallback(signals))
        callbacks = [callback for callback in everyone if callback]
        path = stored[0] if stored else None
        _set_position(train_loader, epoch=len(done), batches=run.part.batches)
        stopped = fit_task(task, train_loader, val_loader, callbacks, signals, path)
        # A signal in the very last moment came too late to interrupt anything.
        interrupted = stopped and not _complete(keeper.history, recipe)
    if interrupted and bar:
        bar.console.print(_farewell(keeper.history, recipe), highlight=False, soft_wrap=True)
    if not interrupted and share.rank == 0:
        checkpoints.tidy(directory, finished=True)
    return _result(
        directory,
        tuple(keeper.history),
        recipe,
        began,
        interrupted=interrupted,
        stop_requested=signals.requested,
    )


def _describe_run(net: Network, loader: Batches, recipe: Recipe, classes: Sequence[str]) -> RunState:
    """What this run is, once network, classes and loader are seen to fit together."""
    if net.spec.num_classes != len(classes) or not classes:
        raise TrainingError(
            f"the network tells {net.spec.num_classes} classes apart, but there are {len(classes)} class "
            f"names; call net.reset_classifier({len(classes)})"
        )
    if len(loader) == 0:
        raise TrainingError("the training data make no whole batch; lower batch_size or add images")
    return RunState(
        recipe=recipe, spec=net.spec.to_dict(), classes=tuple(classes), steps_per_epoch=len(loader)
    )


def _open_directory(
    directory: Path, run: RunState, *, resume: bool, overwrite: bool
) -> tuple[Path, dict[str, Any]] | None:
    """Make the directory ready. Returns the checkpoint to go on from and its content, when resuming."""
    if resume:
        found = checkpoints.find(directory)
        if found is None:
            raise TrainingError(
                f"nothing to resume: no checkpoint in {directory}; start without resume (--resume)"
            )
        run.require_same(RunState.take_from(found[1]))
        if my_share().rank == 0:
            checkpoints.tidy(directory)
        return found
    if checkpoints.exist(directory) and not overwrite:
        raise TrainingError(
            f"{directory} holds a run already; go on with resume (--resume), overwrite it, "
            "or choose another directory"
        )
    if my_share().rank > 0:
        return None  # the first process does it, before anybody takes a step
    checkpoints.clear(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / HISTORY).unlink(missing_ok=True)
        write_text(directory / RECIPE, run.recipe.to_yaml())
    except OSError as error:
        raise TrainingError(f"cannot write to {directory}: {error.strerror or error}") from None
    return None


def fit_task(
    task: ClassificationTask,
    train_loader: Batches,
    val_loader: Batches | None,
    callbacks: list[pl.Callback],
    signals: StopSignals,
    checkpoint: Path | None,
) -> bool:
    """Run Lightning. Returns whether the run was interrupted."""
    with _quiet():
        trainer = pl.Trainer(
            **trainer_options(task.recipe),
            max_epochs=task.recipe.epochs,
            precision=task.recipe.precision,
            accumulate_grad_batches=task.recipe.accumulate,
            callbacks=callbacks,
            plugins=[SafeCheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the loaders have their shares
            benchmark=False,
        )
        try:
            trainer.fit(task, train_loader, val_loader, ckpt_path=checkpoint)
        except (Interrupted, SIGTERMException):  # the second is how Lightning ends an epoch after SIGTERM
            return True
        except RuntimeError as error:
            # Where workers are spawned, Ctrl-C in a terminal ends them before this process has stopped.
            if signals.requested and "DataLoader worker" in str(error):
                return True
            if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
                raise TrainingError(_out_of_memory(task.recipe)) from None
            raise
    return False


def _set_position(loader: Batches, *, epoch: int, batches: int) -> None:
    """Have the first iteration of a loader begin where a run stands."""
    # Lightning makes the first iterator before it tells the sampler the epoch; worker processes then
    # begin to load the order of epoch 0 in whatever epoch a resumed run stands.
    by_batch = loader.batch_sampler
    for sampler in (loader.sampler, by_batch, getattr(by_batch, "sampler", None)):
        set_epoch = getattr(sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
    if batches:
        if not _can_skip(loader):
            raise TrainingError(
                "the checkpoint lies within an epoch, where this loader cannot begin: its batch sampler has "
                "no skip(batches); take the loader of phiscale.data.loading"
            )
        by_batch.skip(batches)  # type: ignore[union-attr]


def _can_skip(loader: Batches) -> bool:
    return hasattr(loader.batch_sampler, "skip")


@contextlib.contextmanager
def prepared(net: Network, recipe: Recipe) -> Iterator[None]:
    """Global and network settings of a run, taken back afterwards where that is possible."""
    keep_freed_memory()
    checkpointing = net.grad_checkpointing
    net.train()
    net.set_grad_checkpointing(recipe.grad_checkpointing)
    synchronize = recipe.sync_batch_norm and my_share().count > 1
    if recipe.channels_last:
        net.to(memory_format=torch.channels_last)
    try:
        norms = synchronized_norms(net) if synchronize else contextlib.nullcontext()
        with (
            torch.random.fork_rng(),
            repeatable_kernels(),
            norms,
            fast_layers(net, enabled=recipe.fast_layers),
        ):
            yield
    finally:
        set_rows(net, None)
        net.set_grad_checkpointing(checkpointing)
        net.train().requires_grad_(True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says to developers."""
    chatter = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [item.level for item in chatter]
    with warnings.catch_warnings():
        for message in (
            r"The '.*_dataloader' does not have many workers",  # two cores are busy training
            r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 on torch 2.14
            r"You defined a `validation_step` but have no `val_dataloader`",  # val_loader=None is allowed
            r".*does not have a deterministic implementation",  # we ask for what there is
            r"You're resuming from a checkpoint that ended before the epoch",  # our loader can be resumed
            r"`broadcast_buffers` is deprecated",  # torch 2.14's new name for it is not in torch 2.6
        ):
            warnings.filterwarnings("ignore", message=message)
        for item in chatter:
            item.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for item, level in zip(chatter, levels, strict=True):
                item.setLevel(level)


def _averaged_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's part of a checkpoint: with a moving average, Lightning stores it in state_dict."""
    return {
        name.removeprefix("net."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("net.")
    }


def _complete(history: Sequence[EpochRecord], recipe: Recipe) -> bool:
    return len(history) >= recipe.epochs or out_of_patience(history, recipe.early_stopping_patience)


def _out_of_memory(recipe: Recipe) -> str:
    return (
        f"out of memory at batch_size {recipe.batch_size}; try batch_size {max(1, recipe.batch_size // 2)} "
        f"with accumulate {recipe.accumulate * 2}, or grad_checkpointing true"
    )


def _farewell(history: Sequence[EpochRecord], recipe: Recipe) -> str:
    return (
        f"stopped after {len(history)} of {recipe.epochs} epochs; the last checkpoint is in place: "
        "run the same again with resume (--resume) to go on"
    )


def _result(
    directory: Path,
    history: tuple[EpochRecord, ...],
    recipe: Recipe,
    began: float,
    *,
    interrupted: bool,
    stop_requested: bool,
) -> TrainResult:
    return TrainResult(
        directory=directory,
        history=history,
        best=best_epoch(history),
        interrupted=interrupted,
        stop_requested=stop_requested,
        stopped_early=not interrupted and len(history) < recipe.epochs,
        seconds=time.perf_counter() - began,
    )
