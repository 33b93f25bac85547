"""Training itself: it learns, writes what it says, stops when it should, and says what is wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_training import CLASSES, PREPROCESS, RECIPE, SPEC, fit, loaders, network, state

from phiscale.data.transforms import normalize
from phiscale.errors import TrainingError
from phiscale.training.history import EpochRecord, best_epoch, out_of_patience, read_history
from phiscale.training.recipe import Recipe
from phiscale.training.train import RECIPE as RECIPE_FILE
from phiscale.weights import model_dir


def test_learns_and_writes_a_model_directory(tmp_path: Path) -> None:
    recipe = RECIPE.override({"epochs": 10, "mixup_alpha": 0})
    result = fit(tmp_path, recipe, provenance={"data": "squares"})
    assert result.best is not None
    assert result.best.val_top1 is not None
    assert result.best.val_top1 >= 0.9
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert not result.interrupted
    assert not result.stopped_early

    model = model_dir.read_config(tmp_path)
    assert model.classes == CLASSES
    assert model.preprocess == PREPROCESS
    assert model.provenance["data"] == "squares"
    assert Recipe.from_dict(model.provenance["training"]["recipe"]) == recipe
    assert Recipe.from_yaml(tmp_path / RECIPE_FILE) == recipe
    assert read_history(tmp_path) == result.history
    json.loads((tmp_path / "history.json").read_text())


def test_the_saved_network_is_the_one_that_was_validated(tmp_path: Path) -> None:
    """The moving average, of BatchNorm statistics too: its accuracy is that of the best record."""
    result = fit(tmp_path, RECIPE.override({"epochs": 4}))
    net = model_dir.load_network(tmp_path)
    losses, right = 0.0, 0
    with torch.no_grad():
        for images, labels in loaders()[1]:
            logits = net(normalize(images, PREPROCESS))
            losses += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
    assert result.best is not None
    assert right / 48 == result.best.val_top1
    assert losses / 48 == pytest.approx(result.best.val_loss, rel=1e-5)


def test_the_directory_opens_after_every_epoch(tmp_path: Path) -> None:
    opened = []

    def on_epoch(record: EpochRecord) -> None:
        opened.append(model_dir.load_network(tmp_path).spec.name)
        assert read_history(tmp_path)[-1] == record

    fit(tmp_path, on_epoch=on_epoch)
    assert opened == ["toy"] * RECIPE.epochs


def test_without_validation_the_last_network_is_saved(tmp_path: Path) -> None:
    net = network()
    result = fit(tmp_path, net=net, data=(loaders()[0], None))
    assert result.best == result.history[-1]
    assert result.best.val_top1 is None
    assert all(torch.equal(value, state(tmp_path)[name]) for name, value in net.state_dict().items())


def test_nan_says_what_to_try(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss became (nan|inf).*lower learning_rate"):
        fit(tmp_path, RECIPE.override({"optimizer": "sgd", "learning_rate": 1e25, "warmup_epochs": 0}))


def test_out_of_memory_says_what_to_try(tmp_path: Path) -> None:
    def on_epoch(record: EpochRecord) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainingError, match=r"memory at batch_size 16; try batch_size 8 with accumulate 2"):
        fit(tmp_path, on_epoch=on_epoch)


def test_classes_must_fit(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"3 classes apart.*2 class names.*reset_classifier\(2\)"):
        fit(tmp_path, classes=("a", "b"))


def test_no_batch(tmp_path: Path) -> None:
    training, validation = loaders(8)
    empty = torch.utils.data.DataLoader(training.dataset, batch_size=16, drop_last=True)
    with pytest.raises(TrainingError, match="no whole batch; lower batch_size"):
        fit(tmp_path, data=(empty, validation))


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write to"):
        fit(tmp_path / "file")


def test_early_stopping(tmp_path: Path) -> None:
    recipe = RECIPE.override(
        {"epochs": 9, "learning_rate": 1e-12, "ema_decay": 0, "early_stopping_patience": 2}
    )
    frozen = SPEC.from_dict({**SPEC.to_dict(), "norm_momentum": 1e-9})
    result = fit(tmp_path, recipe, net=network(frozen))
    assert result.stopped_early
    assert len(result.history) == 3
    assert len(fit(tmp_path, recipe, net=network(frozen), resume=True).history) == 3


def record(
    epoch: int, top1: float | None, loss: float | None = 1.0, images: int | None = None
) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        learning_rate=0.1,
        train_loss=1.0,
        train_top1=0.5,
        val_loss=loss,
        val_top1=top1,
        val_images=images,
        seconds=1.0,
        images_per_second=1.0,
    )


def test_patience_counts_epochs_without_a_better_top1() -> None:
    history = [record(index, top1) for index, top1 in enumerate((0.1, 0.5, 0.4, 0.5, 0.3), start=1)]
    assert not out_of_patience(history[:4], 3)
    assert out_of_patience(history, 3)
    assert not out_of_patience(history, 0)
    assert not out_of_patience([record(1, None, None)] * 9, 3)


def test_best_epoch() -> None:
    assert best_epoch([]) is None
    tied = [record(1, 0.5, 0.8), record(2, 0.5, 0.9), record(3, 0.4, 0.1)]
    assert best_epoch(tied) is tied[1]
    unvalidated = [record(1, None, None), record(2, None, None)]
    assert best_epoch(unvalidated) is unvalidated[1]


def test_epochs_within_one_standard_error_are_as_good() -> None:
    scores = (0.5, 0.9, 0.87, 0.88, 0.8)
    # Of 100 images: √(0.9 · 0.1 / 100) = 0.03, so that 0.87 and 0.88 count as well; of 10,000 it is 0.003.
    few, many = ([record(i, top1, images=n) for i, top1 in enumerate(scores, start=1)] for n in (100, 10_000))
    assert best_epoch(few) is few[3]
    assert best_epoch(many) is many[1]
    assert best_epoch(few[:3]) is few[2]
    assert best_epoch(few[:1]) is few[0]


@pytest.mark.parametrize("seed", range(20))
def test_only_the_newest_epoch_can_become_the_best(seed: int) -> None:
    """A run keeps one network, so the choice may never go back to one that was passed over."""
    rng = random.Random(seed)
    history: list[EpochRecord] = []
    before: EpochRecord | None = None
    for epoch in range(1, 60):
        history.append(record(epoch, rng.randrange(51) / 50, images=50))
        now = best_epoch(history)
        assert now in (before, history[-1])
        before = now


def test_frozen_epochs_train_the_classifier_alone(tmp_path: Path) -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    moved: list[set[str]] = []

    def on_epoch(record: EpochRecord) -> None:
        moved.append(
            {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
        )

    recipe = RECIPE.override({"epochs": 3, "freeze_epochs": 2, "warmup_epochs": 0})
    fit(tmp_path, recipe, net=net, on_epoch=on_epoch)
    # Not even the statistics of batch norm move.
    assert moved[0] == moved[1] == {"classifier.weight", "classifier.bias"}
    assert moved[2] == set(before)
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("changes", [{"grad_checkpointing": True}, {"channels_last": False}])
def test_ways_to_compute_the_same(changes: dict[str, bool], tmp_path: Path) -> None:
    recipe = RECIPE.override({"epochs": 1})
    fit(tmp_path / "plain", recipe)
    fit(tmp_path / "other", recipe.override(changes))
    plain, other = state(tmp_path / "plain"), state(tmp_path / "other")
    for name, value in plain.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_seed_matters(tmp_path: Path) -> None:
    fit(tmp_path / "0", RECIPE.override({"epochs": 1}))
    fit(tmp_path / "1", RECIPE.override({"epochs": 1, "seed": 1}))
    weights: list[Tensor] = [state(tmp_path / seed)["classifier.weight"] for seed in "01"]
    assert not torch.equal(weights[0], weights[1])


def test_progress_goes_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == RECIPE.epochs
    assert lines[0].startswith("epoch 1/3  train loss ")
