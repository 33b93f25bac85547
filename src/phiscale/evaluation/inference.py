"""A network over the images of a source, image by image safe: a bad file is noted, not raised."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from phiscale.data.decode import ImageError
from phiscale.data.sources import ImageRecord, ImageSource
from phiscale.data.transforms import EvalTransform, normalize
from phiscale.errors import DataError
from phiscale.evaluation.results import Skipped
from phiscale.preprocess import Preprocess

__all__ = ["Progress", "Run", "run_network"]

Progress = Callable[[int, int], None]


@dataclass(kw_only=True)
class Run:
    """What `run_network` collects.

    Attributes:
        indices: Positions, in the list of records, of the images that were read.
        logits: Per batch (n, K), on the CPU.
        skipped: Images that could not be read.
        seconds: Wall-clock time of the whole run.
        batches: Images and seconds of the network per batch.
    """

    indices: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    seconds: float = 0.0
    batches: list[tuple[int, float]] = field(default_factory=list)

    @property
    def images_per_second(self) -> float:
        """Images per second from file to logits."""
        return len(self.indices) / self.seconds if self.seconds else 0.0

    @property
    def network_images_per_second(self) -> float:
        """Images per second of the network alone; the first batch counts only where it is the only one."""
        timed = self.batches[1:] or self.batches
        seconds = sum(time for _, time in timed)
        return sum(images for images, _ in timed) / seconds if seconds else 0.0


def run_network(
    network: nn.Module,
    source: ImageSource,
    records: Sequence[ImageRecord],
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    strict: bool,
    progress: Progress | None,
) -> Run:
    """Run a network over images.

    Args:
        network: In eval mode, on `device`.
        source: Reads the images.
        records: Which of them.
        preprocess: The model's.
        batch_size: Images per run of the network.
        workers: Processes that decode; 0 decodes here.
        device: Where the network is.
        strict: Whether an image that cannot be read ends the run.
        progress: Called with images done and images in all, after every batch.

    Raises:
        DataError: An image cannot be read and `strict` is set.
    """
    loader: DataLoader[_Item] = DataLoader(
        _Images(source, records, preprocess),
        batch_size,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # or the loader moves the global one
    )
    run, done, start = Run(), 0, time.perf_counter()
    for items in loader:
        for index, _, error in items:
            if error is not None:
                if strict:
                    raise DataError(f"{records[index].id}: {error}; repair or remove it, or leave strict out")
                run.skipped.append(Skipped(id=records[index].id, reason=error))
        readable = [(index, pixels) for index, pixels, _ in items if pixels is not None]
        if readable:
            run.indices += [index for index, _ in readable]
            batch = torch.stack([pixels for _, pixels in readable])
            begin = time.perf_counter()
            run.logits.append(_forward(network, batch, preprocess, device))
            run.batches.append((len(readable), time.perf_counter() - begin))
        done += len(items)
        if progress is not None:
            progress(done, len(records))
    run.seconds = time.perf_counter() - start
    return run


_Item = tuple[int, Tensor | None, str | None]


class _Images(Dataset[_Item]):
    """Position, pixels (C, H, W) of uint8 and error of each image; one of the last two is None."""

    def __init__(self, source: ImageSource, records: Sequence[ImageRecord], preprocess: Preprocess) -> None:
        self._source = source
        self._records = records
        self._transform = EvalTransform(preprocess)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> _Item:
        try:
            return index, self._transform(self._source.read(self._records[index])), None
        except ImageError as error:
            return index, None, error.reason


@torch.inference_mode()
def _forward(network: nn.Module, batch: Tensor, preprocess: Preprocess, device: torch.device) -> Tensor:
    """Logits (N, K) on the CPU, which waits for the device, so that the time is the network's."""
    batch = batch.to(device).contiguous(memory_format=torch.channels_last)
    return network(normalize(batch, preprocess)).float().cpu()  # type: ignore[no-any-return]
