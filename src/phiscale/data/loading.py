"""Images as batches, the same ones for the same seed: whatever the number of workers, wherever a run starts.

Which images make up a batch is a function of (seed, epoch); what augmentation does to an image is a
function of (seed, epoch, index). torch's global generator is neither read nor moved. Processes that train
together have the batches of one, each its `Share` of every batch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from phiscale.data.cache import CacheMode, PixelCache, open_cache
from phiscale.data.decode import ImageError, decode, printable
from phiscale.data.sources import ImageRecord, ImageSource
from phiscale.data.transforms import ImageTransform
from phiscale.errors import DataError

__all__ = ["Batches", "EpochSampler", "ImageDataset", "Key", "OnError", "Share", "make_loader"]

OnError = Literal["skip", "raise"]
Key = tuple[int, int]
Sample = tuple[Tensor, int]

_log = logging.getLogger(__name__)

# A replacement that fails, too, is replaced again, up to this often: by then most of the data is gone.
_MAX_REPLACEMENTS = 100


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of every batch that is one process's, where several train or validate together.

    Attributes:
        rank: Which process, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    def of(self, total: int) -> range:
        """The positions of a batch of `total` images that are this process's, without a gap or an overlap.

        Examples:
            >>> [list(Share(rank=rank, count=3).of(7)) for rank in range(3)]
            [[0, 1], [2, 3], [4, 5, 6]]
        """
        return range(total * self.rank // self.count, total * (self.rank + 1) // self.count)


class ImageDataset(Dataset[Sample]):
    """The images of some records, transformed.

    Args:
        source: Reads the images.
        records: The images; a key's index is a position here.
        transform: `EvalTransform` or `TrainTransform`.
        cache: Decoded pixels of the same records, from `open_cache`, or None.
        seed: Decides the augmentation, together with epoch and index.
        on_error: What to do with a file that cannot be read although the scan could: ``"skip"`` puts
            another image of the set in its place (which one depends on seed, epoch and index) and
            notes it in `failed`; ``"raise"`` stops.
        exact_decode: Whether every file is decoded whole. Otherwise, without a cache, training takes from
            a JPEG what the random crop needs, which changes less than one grey level on average.

    Raises:
        DataError: There are no records, or the cache holds other ones.
    """

    def __init__(
        self,
        source: ImageSource,
        records: Sequence[ImageRecord],
        transform: ImageTransform,
        cache: PixelCache | None = None,
        *,
        seed: int = 0,
        on_error: OnError = "skip",
        exact_decode: bool = False,
    ) -> None:
        if not records:
            raise DataError(f"there are no images to load from {printable(source.location)}")
        if cache is not None and len(cache) != len(records):
            raise DataError(f"the cache holds {len(cache)} images, not the {len(records)} of this set")
        self.source = source
        self.records = tuple(records)
        self.transform = transform
        self.cache = cache
        self.seed = seed
        self.on_error: OnError = on_error
        self.exact_decode = exact_decode
        # In shared memory, so that workers can tell the main process.
        self._failed = torch.zeros(len(self.records), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the images that could not be read so far, by any worker."""
        return tuple(self.records[i].id for i in self._failed.nonzero().flatten().tolist())

    def __getitem__(self, key: int | Key) -> Sample:
        """One sample.

        Args:
            key: (epoch, index), or an index alone for epoch 0.

        Returns:
            uint8 (channels, height, width), and the label.

        Raises:
            DataError: The image cannot be read and `on_error` is ``"raise"``, or nearly all cannot.
        """
        epoch, index = (0, key) if isinstance(key, int) else key
        for attempt in range(_MAX_REPLACEMENTS):
            seed = _hash(self.seed, epoch, index, attempt)
            position = index if attempt == 0 else seed % len(self.records)
            try:
                return self._transformed(position, seed), self.records[position].label
            except ImageError as error:
                if self.on_error == "raise":
                    raise
                self._note(position, error)
        raise DataError(
            f"{len(self.failed)} of {len(self)} images cannot be read any more; is the disk still there?"
        )

    def __getitems__(self, keys: Sequence[int | Key]) -> list[Sample | DataError]:
        """The samples of one batch. An error comes back as a value, to be raised in the main process."""
        try:
            return [self[key] for key in keys]
        except DataError as error:
            return [error]

    def _transformed(self, position: int, seed: int) -> Tensor:
        if self.cache is None and not self.exact_decode:
            file = self.source.file(self.records[position])
            tensor = None if file is None else self.transform.from_file(file, seed=seed)
            if tensor is not None:
                return tensor
        return self.transform(self._read(position), seed=seed)

    def _read(self, position: int) -> Image.Image:
        record, preprocess = self.records[position], self.transform.preprocess
        if self.cache is not None:
            pixels = self.cache.read(position)
            if pixels is None:
                raise ImageError(f"{printable(record.id)}: was unreadable when the cache was made")
            return Image.fromarray(pixels)
        image = self.source.read(record)
        return decode(image, background=preprocess.background, channels=preprocess.channels)

    def _note(self, position: int, error: ImageError) -> None:
        if not self._failed[position]:
            self._failed[position] = True
            _log.warning("%s; another image takes its place", error)


class EpochSampler(Sampler[Key]):
    """Yields (epoch, index) for every index once, shuffled by (seed, epoch) or in order."""

    def __init__(self, size: int, *, shuffle: bool, seed: int = 0) -> None:
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is; training loops call this by name."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch
        if not self.shuffle:
            yield from ((epoch, index) for index in range(self.size))
            return
        generator = torch.Generator().manual_seed(_hash(self.seed, epoch))
        for index in torch.randperm(self.size, generator=generator).tolist():
            yield epoch, index


class Batches(Sampler[list[Key]]):
    """Batches of a sampler, or one process's share of each.

    In training, a last batch of one image joins the batch before it: batch normalisation cannot train on one
    value per channel.

    Args:
        sampler: Gives the order, that of all images.
        batch_size: Images in a batch, those of all processes together.
        drop_last: Leave out a last batch that is not full, unless it is the only one.
        share: Which part of each batch to give; a batch too small for it to have an image is passed over.
    """

    def __init__(
        self, sampler: EpochSampler, batch_size: int, *, drop_last: bool, share: Share | None = None
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.share = share or Share()
        whole, rest = divmod(len(sampler), batch_size)
        if drop_last or (rest == 1 and sampler.shuffle):
            rest = 0
        # A set smaller than one batch is one small batch: dropping it would leave nothing to train on.
        self.number = max(1, whole + (rest > 0))
        self.merges = sampler.shuffle and not drop_last and len(sampler) % batch_size == 1
        self._first = 0

    def skip(self, batches: int) -> None:
        """Have the next iteration, and that one alone, begin after so many batches; nothing is loaded."""
        self._first = batches

    def __len__(self) -> int:
        # Only the last batch can be too small.
        return self.number - (len(self.share.of(self.total(self.number - 1))) == 0)

    def __iter__(self) -> Iterator[list[Key]]:
        # A generator, so that all this is done at the first batch: before the iterator that it uses, a
        # DataLoader with workers makes another one.
        keys = list(self.sampler)
        first, self._first = self._first, 0
        for number in range(first, len(self)):
            begin = number * self.batch_size
            yield [keys[begin + position] for position in self.share.of(self.total(number))]

    def total(self, number: int) -> int:
        """Images in a batch, those of all processes together."""
        left = len(self.sampler) - number * self.batch_size
        if number == self.number - 1 and self.merges:
            return left
        return min(left, self.batch_size)


class _Loader(DataLoader[Any]):
    """A DataLoader that raises data errors in the main process, as one line.

    torch would wrap an error of a worker into the text of its stack trace.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        error: DataError | None = None
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                error = batch
                break
            yield batch
        if error is not None:
            # Lets the workers go now; held by the error's stack, they would be waited for at exit.
            self._iterator = None
            raise error


def make_loader(
    source: ImageSource,
    records: Sequence[ImageRecord],
    transform: ImageTransform,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int = 0,
    workers: int = 0,
    drop_last: bool = False,
    cache: CacheMode | PixelCache | None = "off",
    cache_dir: Path | None = None,
    cache_limit: int | None = None,
    on_error: OnError = "skip",
    exact_decode: bool = False,
    share: Share | None = None,
) -> DataLoader[Any]:
    """A loader of batches (images, labels): uint8 (N, C, H, W) and int64 (N,).

    Before each epoch, call ``loader.batch_sampler.sampler.set_epoch(epoch)`` (Lightning does). To go on
    within an epoch, call ``loader.batch_sampler.skip(batches)`` before its iteration.
    ``loader.dataset.failed`` names the images that could not be read.

    Args:
        source: Reads the images.
        records: The images.
        transform: `TrainTransform` or `EvalTransform`.
        batch_size: Images per batch, those of all processes together.
        shuffle: True in training. A last batch of one then joins the batch before it.
        seed: Decides order and augmentation.
        workers: Processes that load; 0 loads in this one.
        drop_last: Leave out a last batch that is not full, unless it is the only one.
        cache: How to keep decoded pixels, see `open_cache`; or a cache made before.
        cache_dir: Folder of disk caches.
        cache_limit: Most bytes of decoded pixels.
        on_error: See `ImageDataset`.
        exact_decode: See `ImageDataset`.
        share: Load only this part of each batch, where several processes share it; None is all of it.

    Raises:
        DataError: There are no records, a number is out of range, or the cache does not fit.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if not isinstance(value, int) or value < least:
            raise DataError(f"{name} must be an integer of at least {least}, got {value!r}")
    if isinstance(cache, str):
        cache = open_cache(
            source, records, transform.preprocess, mode=cache, folder=cache_dir, limit=cache_limit
        )
    dataset = ImageDataset(
        source, records, transform, cache, seed=seed, on_error=on_error, exact_decode=exact_decode
    )
    sampler = EpochSampler(len(dataset), shuffle=shuffle, seed=seed)
    return _Loader(
        dataset,
        batch_sampler=Batches(sampler, batch_size, drop_last=drop_last, share=share),
        num_workers=workers,
        collate_fn=_collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: otherwise the loader draws a seed from the global one at every epoch.
        generator=torch.Generator().manual_seed(_hash(seed)),
    )


def _collate(samples: Sequence[Sample | DataError]) -> tuple[Tensor, Tensor] | DataError:
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)


def _hash(*numbers: int) -> int:
    """63 bits that depend on all the numbers; equal on every machine."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
