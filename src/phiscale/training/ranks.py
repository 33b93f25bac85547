"""Several processes that train one network together, seen from one of them.

The process group of `torch.distributed` is all there is to know: whoever starts the processes (Ray, torchrun,
a test) opens it, and training finds it. Without one, a process trains alone.

All processes take the steps of one: a batch is split over them, each step's gradient is the mean over the
whole batch, and what is random is drawn for the whole batch. So the same recipe gives the same network with
any number of processes, within floating-point noise.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from phiscale.data.loading import Batches, Share
from phiscale.errors import TrainingError
from phiscale.nn.layers import Rows
from phiscale.training.recipe import Recipe

__all__ = ["MeanStatistics", "RowsOfBatches", "global_sum", "my_share", "trainer_options", "with_previous"]


def my_share() -> Share:
    """Which of the processes this one is; the only one where there is no process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return Share()
    return Share(rank=dist.get_rank(), count=dist.get_world_size())


def global_sum(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on its device; with one process the tensor itself."""
    if my_share().count == 1:
        return values
    total = values.detach().to(_device(), copy=True)  # NCCL knows no tensors of the CPU
    dist.all_reduce(total)
    return total.to(values.device)


def with_previous(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A process's part of a batch with the image that is before it in the whole batch put in front.

    Before the first image of the batch is the last one, as in `torch.roll`.

    Args:
        images: (N, C, H, W).
        labels: (N,).

    Returns:
        (N + 1, C, H, W) and (N + 1,).
    """
    share = my_share()
    before = (share.rank - 1) % share.count

    def put_in_front(values: Tensor) -> Tensor:
        last = values[-1:].contiguous()
        every = [torch.empty_like(last) for _ in range(share.count)]
        dist.all_gather(every, last)
        return torch.cat((every[before], values))

    return put_in_front(images), put_in_front(labels)


class RowsOfBatches:
    """Where this process's part of each training batch lies in the whole batch.

    Args:
        loader: From `make_loader`, with the share of this process.

    Raises:
        TrainingError: The loader has no share, another one's, or a batch too small for all processes.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        batches, share = loader.batch_sampler, my_share()
        if not isinstance(batches, Batches) or batches.share != share:
            raise TrainingError(
                f"{share.count} processes train together, but the loader gives each of them all images; "
                "make it with make_loader(..., share=my_share())"
            )
        least = min(batches.total(0), batches.total(batches.number - 1))
        if least < share.count:
            raise TrainingError(
                f"a batch of {least} images cannot be split over {share.count} workers; "
                f"use at most {least} workers, or a larger batch_size"
            )
        self._batches, self.share = batches, share

    def __call__(self, number: int) -> Rows:
        """The rows of batch `number` of an epoch."""
        total = self._batches.total(number)
        return Rows(first=self.share.of(total).start, total=total)

    def weight(self, number: int) -> float:
        """Factor of the own rows' mean loss with which its mean over all processes is that of the batch."""
        total = self._batches.total(number)
        return len(self.share.of(total)) * self.share.count / total


class MeanStatistics(pl.Callback):
    """After each step, running statistics of norms become their mean over all processes.

    For norms that are not synchronised: each process then normalises by its own part of the batch.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Average in one collective."""
        norms = [module for module in pl_module.modules() if isinstance(module, nn.BatchNorm2d)]
        if not norms[0].training:
            return
        buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        kept = [buffer for buffer in buffers if buffer is not None]
        means = global_sum(torch.cat(kept)) / trainer.world_size
        torch._foreach_copy_(kept, list(torch.split(means, [len(buffer) for buffer in kept])))


def trainer_options(recipe: Recipe) -> dict[str, Any]:
    """What Lightning's `Trainer` has to be told about devices and processes."""
    share = my_share()
    if share.count == 1:
        return {"accelerator": "auto", "devices": 1, "strategy": "auto"}
    strategy = _OpenGroupStrategy(
        cluster_environment=_OpenGroup(),
        # The statistics of norms are equal anyway, see `SyncBatchNorm2d` and `MeanStatistics`.
        broadcast_buffers=False,
        # While the layers before the classifier are frozen, they have no gradient.
        find_unused_parameters=recipe.freeze_epochs > 0,
        gradient_as_bucket_view=True,
    )
    # To Lightning each process is a machine with one device.
    accelerator = "gpu" if _device().type == "cuda" else "cpu"
    return {"accelerator": accelerator, "devices": 1, "num_nodes": share.count, "strategy": strategy}


class _OpenGroup(ClusterEnvironment):
    """A process group that is open already."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        raise NotImplementedError("the process group is open already")

    @property
    def main_port(self) -> int:
        raise NotImplementedError("the process group is open already")

    @staticmethod
    def detect() -> bool:
        return my_share().count > 1

    def world_size(self) -> int:
        return my_share().count

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return my_share().rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return my_share().rank


class _OpenGroupStrategy(DDPStrategy):
    """`DDPStrategy` on the device that whoever opened the process group has chosen."""

    @property
    def root_device(self) -> torch.device:
        return _device()


def _device() -> torch.device:
    """The device of this process: its present GPU where the processes talk by NCCL, else the CPU."""
    if "nccl" in dist.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
