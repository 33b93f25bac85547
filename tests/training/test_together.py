"""Processes that train together do what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from together import loaders, train_share
from toy_training import RECIPE, network, state

from phiscale.data.loading import Share
from phiscale.errors import TrainingError
from phiscale.training.history import EpochRecord, read_history
from phiscale.training.ranks import my_share
from process_group import run_together

SGD = RECIPE.override({"optimizer": "sgd", "learning_rate": 0.5, "epochs": 2})
VARIANTS = {
    "mixup, dropout and drop path": SGD,
    "no average": SGD.override({"ema_decay": 0.0, "mixup_alpha": 0.0}),
    "accumulated": SGD.override({"accumulate": 3, "clip_grad_norm": 1.0}),
    "frozen first": SGD.override({"freeze_epochs": 1}),
    "checkpointed": SGD.override({"grad_checkpointing": True}),
    "adamw": RECIPE,
    "own norms": SGD.override({"sync_batch_norm": False}),
}


FIRST = next(iter(VARIANTS))
DIFFERENT = ("adamw", "own norms")


class StopError(Exception):
    """Ends a run after its first epoch."""


def train_all(folder: Path) -> None:
    """Every variant, in a folder of its own."""
    for name, recipe in VARIANTS.items():
        train_share(folder / name, recipe)


def train_first(folder: Path) -> None:
    """The first variant."""
    train_share(folder / FIRST, VARIANTS[FIRST])


def begin(out: Path) -> None:
    """One epoch of a run."""

    def stop(_: EpochRecord) -> None:
        raise StopError

    with pytest.raises(StopError):
        train_share(out, SGD, on_epoch=stop)


def go_on(out: Path) -> None:
    """The rest of a run."""
    train_share(out, SGD, resume=True)


def diverge(out: Path) -> None:
    """A loss that is not finite, in the last process alone."""
    net = network()
    if my_share().rank == 1:
        net.register_forward_hook(lambda *arguments: arguments[2] * torch.nan)
    with pytest.raises(TrainingError, match="the loss became nan"):
        train_share(out, SGD.override({"sync_batch_norm": False}), net=net)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All variants by one process and by two, and the first by three, in folders 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("trained")
    train_all(folder / "1")
    run_together(train_all, folder / "2", count=2, folder=folder)
    run_together(train_first, folder / "3", count=3, folder=folder)
    return folder


def losses(out: Path) -> list[float]:
    return [record.train_loss for record in read_history(out)]


def curve(out: Path) -> list[float | None]:
    return [
        value for r in read_history(out) for value in (r.train_loss, r.train_top1, r.val_loss, r.val_top1)
    ]


def difference(one: Path, other: Path) -> float:
    """The largest of any weight or statistic."""
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize(
    ("count", "variant"),
    [(3, FIRST), *((2, name) for name in VARIANTS if name not in DIFFERENT)],
)
def test_several_processes_are_one(count: int, variant: str, trained: Path) -> None:
    one, several = trained / "1" / variant, trained / str(count) / variant
    assert curve(several) == pytest.approx(curve(one), rel=1e-5)
    assert difference(several, one) < 1e-5


def test_several_processes_are_one_with_adamw(trained: Path) -> None:
    # A bias whose output is normalised again has no gradient but noise, which Adam divides by its own size:
    # such biases take whole steps at random, which the norm after them takes back.
    assert losses(trained / "2" / "adamw") == pytest.approx(losses(trained / "1" / "adamw"), rel=1e-5)


def test_norms_of_their_own_give_other_curves(trained: Path) -> None:
    own, one = losses(trained / "2" / "own norms"), losses(trained / "1" / "own norms")
    assert own != pytest.approx(one, rel=1e-3)
    assert own[-1] < own[0]


def test_a_run_goes_on_with_another_number_of_processes(trained: Path, tmp_path: Path) -> None:
    for counts in ((2, 1), (1, 2)):
        out = tmp_path / str(counts)
        for count, work in zip(counts, (begin, go_on), strict=True):
            if count == 1:
                work(out)
            else:
                run_together(work, out, count=count, folder=tmp_path, fails=work is begin)
        whole = trained / "1" / FIRST
        assert curve(out) == pytest.approx(curve(whole), rel=1e-5)
        assert difference(out, whole) < 1e-5


def test_all_stop_at_a_loss_that_one_sees(tmp_path: Path) -> None:
    run_together(diverge, tmp_path / "run", count=2, folder=tmp_path)


def test_loaders_that_give_all_to_each(tmp_path: Path) -> None:
    run_together(refuse, tmp_path / "run", count=2, folder=tmp_path)


def refuse(out: Path) -> None:
    """Loaders and batches that two processes cannot share."""
    with pytest.raises(TrainingError, match=r"make it with make_loader\(..., share=my_share\(\)\)"):
        train_share(out, SGD, data=loaders(Share(), batch=16))
    with pytest.raises(TrainingError, match="a batch of 1 images cannot be split over 2 workers"):
        train_share(out, SGD.override({"batch_size": 1}))
