"""A run that was broken off and resumed ends with the weights of an unbroken one, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader
from toy_training import (
    CLASSES,
    RECIPE,
    SPEC,
    EpochSampler,
    assert_same_weights,
    child,
    fit,
    loaders,
    network,
)

from phiscale.errors import TrainingError
from phiscale.training import checkpoints
from phiscale.training.clock import StepClock
from phiscale.training.history import EpochRecord
from phiscale.training.keeper import RunKeeper
from phiscale.training.recipe import Recipe
from phiscale.training.train import train

VARIANTS = {
    "adamw": RECIPE,
    "rmsprop_tf": RECIPE.override(
        {"optimizer": "rmsprop_tf", "learning_rate": 0.01, "schedule": "exponential", "accumulate": 4}
    ),
    "fine-tuning": RECIPE.override(
        {"optimizer": "sgd", "freeze_epochs": 2, "layer_decay": 0.5, "clip_grad_norm": 1.0, "epochs": 4}
    ),
    "no average": RECIPE.override({"ema_decay": 0.0, "mixup_alpha": 0.0, "precision": "bf16-mixed"}),
    "fast layers": RECIPE.override({"fast_layers": True}),
    "tuned": RECIPE.override({"fast_layers": True, "precision": "bf16-mixed", "freeze_epochs": 1}),
    "workers": RECIPE.override({"workers": 2}),
}


class CrashError(Exception):
    """Stands for whatever ends a process."""


def crash_after(epoch: int, out: Path, recipe: Recipe) -> None:
    def on_epoch(record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise CrashError

    with pytest.raises(CrashError):
        fit(out, recipe, on_epoch=on_epoch, workers=recipe.workers)


@pytest.fixture(scope="module")
def forkserver() -> ForkServerContext:
    # Its processes are real and can be killed, and start in a moment: torch is imported once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["phiscale.training.train"])
    return context


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, forkserver: ForkServerContext) -> tuple[Path, float]:
    """An unbroken run in a process of its own, and the seconds that it took."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    for attempt in range(2):  # the first start of the server imports torch; time the second
        began = time.monotonic()
        process = forkserver.Process(target=child, args=(out, RECIPE, False, None))
        process.start()
        process.join()
        seconds = time.monotonic() - began
        assert process.exitcode == 0
        if attempt == 0:
            out = out.with_name("again")
    assert_same_weights(out, out.with_name("run"))
    return out, seconds


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_equals_unbroken(variant: str, tmp_path: Path) -> None:
    recipe = VARIANTS[variant]
    whole = fit(tmp_path / "whole", recipe, workers=recipe.workers)
    for epoch in range(1, recipe.epochs):
        out = tmp_path / str(epoch)
        crash_after(epoch, out, recipe)
        resumed = fit(out, recipe, resume=True, workers=recipe.workers)
        assert_same_weights(out, tmp_path / "whole")
        for one, other in zip(resumed.history, whole.history, strict=True):
            assert (one.train_loss, one.val_loss, one.val_top1) == (
                other.train_loss,
                other.val_loss,
                other.val_top1,
            )
            assert one.learning_rate == other.learning_rate


def crash_after_step(step: int, out: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """End a run once the checkpoint after so many batches is stored."""
    steps = 0

    def step_ends(self: StepClock) -> None:
        nonlocal steps
        steps += 1

    def store(self: RunKeeper, trainer: Any) -> None:
        real(self, trainer)
        if steps == step:
            raise CrashError

    real = RunKeeper._store
    with monkeypatch.context() as patched:
        patched.setattr(StepClock, "step_ends", step_ends)
        patched.setattr(RunKeeper, "_store", store)
        with pytest.raises(CrashError):
            fit(out, recipe, workers=recipe.workers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_within_an_epoch_equals_unbroken(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = VARIANTS[variant].override({"checkpoint_minutes": 1e-9})
    whole = fit(tmp_path / "whole", recipe, workers=recipe.workers)
    # Of six batches an epoch: early and late in the first one, in the second, and before its last batch.
    for step in (4, 5, 8, 11) if recipe.accumulate == 1 else (4, 10):
        out = tmp_path / str(step)
        crash_after_step(step, out, recipe, monkeypatch)
        data = loaders(workers=recipe.workers)
        resumed = fit(out, recipe, resume=True, data=data)
        assert_same_weights(out, tmp_path / "whole")
        for one, other in zip(resumed.history, whole.history, strict=True):
            assert (one.train_loss, one.train_top1) == (other.train_loss, other.train_top1)
            assert (one.val_loss, one.val_top1) == (other.val_loss, other.val_top1)
            assert one.learning_rate == other.learning_rate
        if recipe.workers == 0:
            asked = data[0].dataset.asked  # type: ignore[attr-defined]
            assert len(asked) == 96 * recipe.epochs - 16 * step  # what was done is not loaded again


def test_a_signal_stores_a_checkpoint_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "whole")
    real = StepClock.step_ends
    steps = 0

    def step_ends(self: StepClock) -> None:
        nonlocal steps
        real(self)
        steps += 1
        if steps == 8:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(StepClock, "step_ends", step_ends)
        assert fit(tmp_path / "run").interrupted
    found = checkpoints.find(tmp_path / "run")
    assert found is not None
    assert checkpoints.RunState.take_from(found[1]).part.batches == 2
    data = loaders()
    fit(tmp_path / "run", resume=True, data=data)
    assert len(data[0].dataset.asked) == 96 * 2 - 32  # type: ignore[attr-defined]
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_without_minutes_there_are_checkpoints_after_epochs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, real = [], RunKeeper._store

    def store(self: RunKeeper, trainer: Any) -> None:
        stored.append(self._batches)
        real(self, trainer)

    monkeypatch.setattr(RunKeeper, "_store", store)
    fit(tmp_path / "none", RECIPE.override({"checkpoint_minutes": 0}))
    assert stored == [0, 0, 0]
    fit(tmp_path / "each", RECIPE.override({"checkpoint_minutes": 1e-9}))
    assert stored[3:] == 3 * [1, 2, 3, 4, 5, 0]


def test_a_loader_that_cannot_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPE.override({"checkpoint_minutes": 1e-9})
    crash_after_step(3, tmp_path / "run", recipe, monkeypatch)
    training, validation = loaders()
    plain = DataLoader(training.dataset, batch_sampler=BatchSampler(EpochSampler(96), 16, drop_last=False))
    with pytest.raises(TrainingError, match=r"its batch sampler has no skip\(batches\)"):
        fit(tmp_path / "run", recipe, resume=True, data=(plain, validation))
    fit(tmp_path / "plain", recipe, data=(plain, validation))
    fit(tmp_path / "whole", recipe)
    assert_same_weights(tmp_path / "plain", tmp_path / "whole")


@pytest.mark.parametrize("minutes", [1e-9, pytest.param(0, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    minutes: float, unbroken: tuple[Path, float], forkserver: ForkServerContext, tmp_path: Path
) -> None:
    expected, seconds = unbroken
    recipe = RECIPE.override({"checkpoint_minutes": minutes})
    chance, kills = random.Random(0), 0
    for trial in range(5):
        out = tmp_path / str(trial)
        process = None
        for _ in range(20):
            resume = (out / "checkpoints").exists() and any((out / "checkpoints").glob("*.ckpt"))
            process = forkserver.Process(target=child, args=(out, recipe, resume, None))
            process.start()
            process.join(chance.uniform(0.1, 1.0) * seconds)
            if process.exitcode is None:
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
                kills += process.exitcode == -signal.SIGKILL
            if process.exitcode == 0:
                break
        else:  # every trial was killed before its end; let the last one finish
            fit(out, recipe, resume=True)
        assert_same_weights(out, expected)
    assert kills > 0


@pytest.mark.parametrize("moment", ["before the checkpoint", "half a checkpoint", "between the renames"])
def test_killed_while_the_checkpoint_is_written(
    moment: str, unbroken: tuple[Path, float], forkserver: ForkServerContext, tmp_path: Path
) -> None:
    process = forkserver.Process(target=child, args=(tmp_path, RECIPE, False, moment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if moment == "between the renames":
        assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    process = forkserver.Process(target=child, args=(tmp_path, RECIPE, True, None))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert_same_weights(tmp_path, unbroken[0])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty", "text"])
def test_damaged_last_checkpoint_gives_way_to_the_previous(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path / "whole")
    crash_after(2, tmp_path / "run", RECIPE)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    # A weight in the middle of the file: torch.load itself does not notice.
    content[len(content) // 2] ^= 1
    damaged = {"cut off": content[:-1000], "one bit": content, "empty": b"", "text": b"not a checkpoint"}
    last.write_bytes(bytes(damaged[damage]))
    fit(tmp_path / "run", resume=True)
    assert "last.ckpt is damaged" in caplog.text
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "whole")

    def on_epoch(record: EpochRecord) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)

    with pytest.raises(TrainingError, match=r"cannot write the checkpoint .*No space left.*make room"):
        fit(tmp_path / "run", on_epoch=on_epoch)
    monkeypatch.undo()
    fit(tmp_path / "run", resume=True)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_every_checkpoint_damaged(tmp_path: Path) -> None:
    crash_after(2, tmp_path, RECIPE)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"every checkpoint in .* is damaged; start anew"):
        fit(tmp_path, resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_cleanly_and_resumes(number: signal.Signals, tmp_path: Path) -> None:
    handler = signal.getsignal(number)
    fit(tmp_path / "whole")
    # Sent between epoch 1 and 2, so that it is the first step of epoch 2 that is finished.
    result = fit(tmp_path / "run", on_epoch=lambda _: os.kill(os.getpid(), number))
    assert result.interrupted
    assert not result.stopped_early
    assert len(result.history) == 1
    assert signal.getsignal(number) is handler
    resumed = fit(tmp_path / "run", resume=True)
    assert not resumed.interrupted
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_ctrl_c_spares_the_workers(forkserver: ForkServerContext, tmp_path: Path) -> None:
    recipe = VARIANTS["workers"]
    process = forkserver.Process(target=child, args=(tmp_path / "run", recipe, False, "ctrl-c"))
    process.start()
    process.join()
    assert process.exitcode == 0
    fit(tmp_path / "whole", recipe, workers=2)
    assert len(fit(tmp_path / "run", recipe, resume=True, workers=2).history) == recipe.epochs
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_workers_that_ctrl_c_ended_are_no_error(tmp_path: Path) -> None:
    def on_epoch(record: EpochRecord) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")

    assert fit(tmp_path, on_epoch=on_epoch).interrupted


def test_interrupt_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, progress=True, on_epoch=lambda _: os.kill(os.getpid(), signal.SIGINT))
    captured = capsys.readouterr()
    assert "stopped after 1 of 3 epochs" in captured.err
    assert "resume" in captured.err
    assert not captured.out


def test_a_complete_run_is_left_as_it_is(tmp_path: Path) -> None:
    first = fit(tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    net = network()
    again = fit(tmp_path, resume=True, net=net)
    assert again.history == first.history
    assert again.best == first.best
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nothing to resume.*start without resume"):
        fit(tmp_path, resume=True)


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    crash_after(1, tmp_path, RECIPE)
    changed = RECIPE.override({"learning_rate": 0.5, "augment.hflip": 0.25})
    with pytest.raises(
        TrainingError, match=r"learning_rate was 0\.05, is 0\.5; augment\.hflip was .*, is 0\.25"
    ):
        fit(tmp_path, changed, resume=True)
    with pytest.raises(TrainingError, match=r"spec\.activation was swish, is relu"):
        fit(tmp_path, resume=True, net=network(SPEC.from_dict({**SPEC.to_dict(), "activation": "relu"})))
    with pytest.raises(TrainingError, match="steps_per_epoch was 6, is 4"):
        fit(tmp_path, resume=True, data=loaders(64))
    with pytest.raises(TrainingError, match="classes was"):
        fit(tmp_path, resume=True, classes=CLASSES[::-1])
    fit(tmp_path, RECIPE.override({"workers": 1}), resume=True)


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    crash_after(1, tmp_path, RECIPE)
    with pytest.raises(TrainingError, match="holds a run already; go on with resume"):
        fit(tmp_path)
    assert len(fit(tmp_path, overwrite=True).history) == RECIPE.epochs


def test_random_state_is_left_as_it_was(tmp_path: Path) -> None:
    net, data = network(), loaders()
    before = torch.get_rng_state()
    fit(tmp_path, net=net, data=data)
    assert torch.equal(torch.get_rng_state(), before)
    assert train.__doc__ is not None
