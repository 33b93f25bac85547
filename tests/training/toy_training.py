"""A network and images so small that a run takes a second, and runs in processes that may be killed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec
from phiscale.training.recipe import Recipe
from phiscale.training.train import TrainResult, train

CLASSES = ("red", "green", "blue")
PREPROCESS = Preprocess.for_size(32)

SPEC = NetworkSpec(
    name="toy",
    stem=StemSpec(out_channels=8),
    stages=(
        StageSpec(block="mbconv", num_layers=1, stride=2, out_channels=8, se_ratio=0.25),
        StageSpec(block="mbconv", num_layers=2, stride=2, expand_ratio=2, out_channels=16, se_ratio=0.25),
    ),
    head=HeadSpec(out_channels=32),
    image_size=(32, 32),
    num_classes=len(CLASSES),
    norm_momentum=0.1,
    dropout=0.2,
    drop_path=0.2,
)

RECIPE = Recipe(
    epochs=3, batch_size=16, learning_rate=0.05, warmup_epochs=0.5, ema_decay=0.9, mixup_alpha=0.2
)


class Squares(Dataset[tuple[Tensor, Tensor]]):
    """uint8 noise (3, 32, 32) in which the class's colour is brighter; notes what is asked for."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % len(CLASSES)
        self.images = torch.randint(0, 156, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        self.images[torch.arange(count), self.labels] += 60
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.asked.append(index)
        return self.images[index], self.labels[index]


class SkippingBatches(BatchSampler):
    """Batches of which the next iteration may leave out the first ones."""

    first = 0

    def skip(self, batches: int) -> None:
        self.first = batches

    def __iter__(self) -> Iterator[list[int]]:
        first, self.first = self.first, 0
        yield from itertools.islice(super().__iter__(), first, None)


class EpochSampler(Sampler[int]):
    """An order that depends on seed and epoch only."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())


def loaders(
    count: int = 96, *, batch: int = 16, workers: int = 0
) -> tuple[DataLoader[tuple[Tensor, Tensor]], DataLoader[tuple[Tensor, Tensor]]]:
    training: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        Squares(count, 0),
        batch_sampler=SkippingBatches(EpochSampler(count), batch, drop_last=False),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return training, DataLoader(Squares(48, 1), batch_size=batch)


def network(spec: NetworkSpec = SPEC) -> Network:
    torch.manual_seed(0)
    return Network(spec)


def fit(out: Path, recipe: Recipe = RECIPE, *, workers: int = 0, **options: Any) -> TrainResult:
    """Train the toy network; options go to `train`."""
    net = options.pop("net", None) or network()
    training, validation = options.pop("data", None) or loaders(workers=workers)
    settings = {"classes": CLASSES, "preprocess": PREPROCESS, "progress": False, **options}
    return train(net, training, validation, recipe=recipe, out=out, **settings)


def state(out: Path) -> dict[str, Tensor]:
    """The weights in a model directory."""
    return load_file(out / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Bit for bit, every tensor."""
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert not different


# -- a run in a process of its own, which may be killed or kill itself ---------------------------------


def child(out: Path, recipe: Recipe, resume: bool, trap: str | None) -> None:
    """Train in a process of its own; `trap` names a moment in epoch 2 at which it kills itself."""
    torch.set_num_threads(1)
    if trap == "ctrl-c":
        # As a terminal does: to every process of the group, the loader's workers among them.
        os.setsid()
        multiprocessing.set_start_method("fork", force=True)
        result = fit(out, recipe, workers=recipe.workers, on_epoch=lambda _: os.killpg(0, signal.SIGINT))
        assert result.interrupted
        return
    if trap:
        _set_trap(trap)
    fit(out, recipe, resume=resume, workers=recipe.workers)


def _set_trap(moment: str) -> None:
    """Arrange for SIGKILL in the third checkpoint: after the start and epoch 1 comes epoch 2."""
    original_save, original_replace = torch.save, Path.replace
    calls = 0

    def save(checkpoint: object, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 3 and moment == "before the checkpoint":
            os.kill(os.getpid(), signal.SIGKILL)
        original_save(checkpoint, path)
        if calls == 3 and moment == "half a checkpoint":
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def replace(self: Path, target: Path) -> Path:
        result = original_replace(self, target)
        if calls == 3 and moment == "between the renames" and self.name == "last.ckpt":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    torch.save = save  # type: ignore[assignment]
    Path.replace = replace  # type: ignore[assignment, method-assign]
