"""Several processes of this machine that train the toy network together, by gloo."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from toy_training import RECIPE, Squares, fit

from phiscale.data.loading import Batches, EpochSampler, Key
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


def shared_loaders(count: int = 97, *, batch: int = 16) -> Loaders:
    """The share of this process. The last training batch has an image more, the last validation batch one."""

    def loader(count: int, seed: int, *, shuffle: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        sampler = EpochSampler(count, shuffle=shuffle, seed=seed)
        return DataLoader(
            Keyed(count, seed),
            batch_sampler=Batches(sampler, batch, drop_last=False, share=my_share()),
        )

    return loader(count, 0, shuffle=True), loader(49, 1, shuffle=False)


def train_share(out: Path, recipe: Recipe = RECIPE, **options: Any) -> TrainResult:
    """Train in this process, alone or with the others of its group."""
    torch.set_num_threads(1)
    return fit(out, recipe, data=shared_loaders(batch=recipe.batch_size), **options)


def forkserver() -> ForkServerContext:
    """Starts processes in a moment: torch is imported once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["phiscale.training.train"])
    return context


def run_together(work: Callable[..., None], *arguments: Any, count: int, folder: Path) -> list[int | None]:
    """Call `work` in `count` processes of one group. Returns their exit codes."""
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"
    context = forkserver()
    processes = [
        context.Process(target=_join, args=(rank, count, meeting, work, arguments)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in processes]


def _join(rank: int, count: int, meeting: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=count)
    try:
        work(*arguments)
    finally:
        dist.destroy_process_group()
