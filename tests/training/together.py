"""Processes of one group that train the toy network together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from toy_training import RECIPE, Squares, fit

from phiscale.data.loading import Batches, EpochSampler, Key, Share
from phiscale.training.ranks import my_share
from phiscale.training.recipe import Recipe
from phiscale.training.train import TrainResult

Loaders = tuple[DataLoader[tuple[Tensor, Tensor]], DataLoader[tuple[Tensor, Tensor]]]


class Keyed(Dataset[tuple[Tensor, Tensor]]):
    """Squares by (epoch, index)."""

    def __init__(self, count: int, seed: int) -> None:
        self.squares = Squares(count, seed)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        return self.squares[key[1]]


def loaders(share: Share, *, batch: int) -> Loaders:
    """The last training batch has an image more than the others, the last validation batch only one."""

    def loader(count: int, seed: int, *, shuffle: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        sampler = EpochSampler(count, shuffle=shuffle, seed=seed)
        batches = Batches(sampler, batch, drop_last=False, share=share)
        return DataLoader(Keyed(count, seed), batch_sampler=batches)

    return loader(97, 0, shuffle=True), loader(49, 1, shuffle=False)


def train_share(out: Path, recipe: Recipe = RECIPE, **options: Any) -> TrainResult:
    """Train in this process, alone or with the others of its group."""
    options.setdefault("data", loaders(my_share(), batch=recipe.batch_size))
    return fit(out, recipe, **options)
