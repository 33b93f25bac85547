from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler
from toy_training import CLASSES, PREPROCESS, SPEC, Squares

import phiscale as ps
from phiscale.data.augment import Augment
from phiscale.data.loading import EpochSampler
from phiscale.errors import TrainingError
from phiscale.nn.network import Network, build_network
from phiscale.spec import NetworkSpec
from phiscale.training.recipe import Recipe
from phiscale.training.resident import (
    LabelledImages,
    _Step,
    augment_batch,
    train_resident,
    why_not_resident,
)
from phiscale.training.train import train

TINY = replace(SPEC, dropout=0.0, drop_path=0.0)
PLAIN = Recipe(epochs=3, batch_size=8, warmup_epochs=1, norm_momentum=0.1, augment=Augment(hflip=0.0))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def squares(count: int = 40, seed: int = 0) -> LabelledImages:
    made = Squares(count, seed)
    return LabelledImages(made.images, made.labels)


class InOrder(Sampler[int]):
    """The package's order of an epoch, without the epochs in its keys."""

    def __init__(self, count: int) -> None:
        self._sampler = EpochSampler(count, shuffle=True)

    def set_epoch(self, epoch: int) -> None:
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        return iter([index for _, index in self._sampler])


def new_network(seed: int = 0, spec: NetworkSpec = TINY) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(spec)


def test_it_trains_what_lightning_trains(tmp_path: Path) -> None:
    """Same batches, rates, decay and average: the same weights, but for rounding."""
    theirs = new_network()
    batches = BatchSampler(InOrder(40), batch_size=8, drop_last=True)
    run = train(
        theirs,
        DataLoader(Squares(40, 0), batch_sampler=batches),
        DataLoader(Squares(12, 1), batch_size=8),
        recipe=PLAIN,
        out=tmp_path / "run",
        classes=CLASSES,
        preprocess=PREPROCESS,
        progress=False,
    )
    ours = new_network()
    start = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    history = train_resident(
        ours,
        squares(40, 0),
        squares(12, 1),
        recipe=PLAIN,
        preprocess=PREPROCESS,
        device="cpu",
    )
    if not torch.cuda.is_available():
        moved = max(float((theirs.state_dict()[name] - start[name]).abs().max()) for name in start)
        for name, tensor in ours.state_dict().items():
            torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=1e-3, atol=1e-4 * moved)
    for mine, other in zip(history, run.history, strict=True):
        assert mine.learning_rate == pytest.approx(other.learning_rate)
        assert mine.train_loss == pytest.approx(other.train_loss, rel=1e-3)
        assert mine.val_loss == pytest.approx(other.val_loss, rel=1e-3)
        assert mine.epoch == other.epoch


def test_the_same_seed_gives_the_same_scores() -> None:
    recipe = replace(PLAIN, augment=Augment(pad_crop=2))
    data = [squares(), squares(12, 1)]
    losses = [
        train_resident(new_network(), *data, recipe=recipe, preprocess=PREPROCESS, device="cpu")[
            -1
        ].train_loss
        for recipe in (recipe, recipe, replace(recipe, seed=1))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_batch_is_augmented_like_single_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 9, 7), generator=generator, dtype=torch.uint8)
    shift = torch.tensor([[0, 0], [2, -1], [-2, 2], [1, 0], [-1, -2]])
    mirror = torch.tensor([False, False, True, True, False])
    found = augment_batch(images, shift=shift, mirror=mirror, augment=Augment(pad_crop=2))
    for image, (down, right), flipped, result in zip(images, shift.tolist(), mirror, found, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)), mode="edge")
        wanted = padded[:, 2 - down : 11 - down, 2 - right : 9 - right]
        assert np.array_equal(result.numpy(), wanted[:, :, ::-1] if flipped else wanted)


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    changes = {"shift": torch.ones(2, 2, dtype=torch.int64), "mirror": torch.ones(2, dtype=torch.bool)}
    assert torch.equal(augment_batch(images, **changes, augment=Augment(hflip=0)), images)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mixup_alpha": 0.2}, "mixup_alpha 0.2"),
        ({"optimizer": "sgd"}, "optimizer 'sgd'"),
        ({"augment.policy": "trivial"}, "augment.policy 'trivial'"),
        ({"augment.crop_scale": (0.5, 1.0)}, r"augment.crop_scale \(0.5, 1.0\)"),
    ],
)
def test_it_names_what_it_cannot_do(changes: dict[str, object], named: str) -> None:
    recipe = PLAIN.override(changes)
    assert why_not_resident(PLAIN) is None
    assert why_not_resident(recipe) is not None
    data = squares()
    with pytest.raises(TrainingError, match=named):
        train_resident(new_network(), data, data, recipe=recipe, preprocess=PREPROCESS, device="cpu")


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    data = squares()
    recipe = replace(PLAIN, learning_rate=1e12)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train_resident(new_network(), data, data, recipe=recipe, preprocess=PREPROCESS, device="cpu")


def test_too_few_images_are_an_error() -> None:
    data = squares()
    few = LabelledImages(data.images[:7], data.labels[:7])
    with pytest.raises(TrainingError, match="no whole batch"):
        train_resident(new_network(), few, data, recipe=PLAIN, preprocess=PREPROCESS, device="cpu")


@needs_gpu
def test_the_graph_does_what_the_steps_do(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(ps.get_spec("efficientnet_b0"), image_size=(32, 32), num_classes=3, dropout=0, drop_path=0)
    data = [squares(), squares(12, 1)]
    recipe = replace(PLAIN, epochs=8, augment=Augment(pad_crop=2))

    def losses(before_recording: int) -> list[float]:
        monkeypatch.setattr("phiscale.training.resident._STEPS_BEFORE_RECORDING", before_recording)
        history = train_resident(new_network(spec=spec), *data, recipe=recipe, preprocess=PREPROCESS)
        return [record.train_loss for record in history]

    steps = len(data[0]) // recipe.batch_size * recipe.epochs
    assert steps > 4
    assert losses(3) == pytest.approx(losses(10**6), rel=1e-3)


@needs_gpu
def test_a_graph_draws_new_numbers_each_time() -> None:
    """Dropout of a recorded step would otherwise drop the same neurons for ever."""
    data = squares().to(torch.device("cuda"))
    net = new_network(spec=replace(TINY, dropout=0.5)).cuda()
    step = _Step(net, data, replace(PLAIN, epochs=4, learning_rate=1e-30, weight_decay=0.0), PREPROCESS)
    losses = {step.run_epoch(0)[0] for _ in range(4)}
    assert len(losses) > 1
