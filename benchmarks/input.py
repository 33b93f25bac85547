"""Training input from a folder of JPEGs: this project's loader beside timm's transform in torch's DataLoader.

    python -m benchmarks.input [--images 200] [--rounds 5] [--sizes 500x375 2048x1536] [--output FILE]

Both make batches of 224-pixel crops from the same files, with the same augmentations: a random resized crop
and a mirror image, and with `--policy trivial` torchvision's TrivialAugment. Both end with normalised floats:
timm's transform gives them, and this project's bytes are normalised as a batch, which is part of its time.
One process on one core, then two workers on two cores, in turn. Prints images per second and their ratio as
JSON. The exit code is 1 where a ratio on one core is below 2.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.measure import machine, ratio, versions
from benchmarks.pictures import JPEG_QUALITY, crop, photographs
from phiscale.data.augment import Augment, TrainTransform
from phiscale.data.loading import make_loader
from phiscale.data.sources import open_source
from phiscale.data.transforms import normalize
from phiscale.preprocess import Preprocess
from phiscale.training.allocator import keep_freed_memory

__all__ = ["main"]

WANTED = 2.0
SIDE, BATCH, SEED = 224, 32, 0
SCALES = ((0.08, 1.0), (0.35, 1.0))
WORKERS = (0, 2)
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200, help="JPEGs of 500×375; a quarter of larger ones.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=["500x375", "2048x1536"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--policy", choices=("none", "trivial"), default="none")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--output", type=Path, help="Write the JSON to a file, too.")
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    torch.set_num_threads(1)  # as each worker does
    keep_freed_memory()  # as training does, to the good of both
    facts = machine(1)  # with the load before anything runs
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for text in options.sizes:
            width, height = map(int, text.split("x"))
            folder = Path(name, text)
            number = options.images if width * height < 10**6 else max(BATCH, options.images // 4)
            write_folder(folder, number, (width, height))
            for workers in options.workers:
                if cores:
                    os.sched_setaffinity(0, cores[: max(1, workers)])
                for scale in SCALES:
                    rows.append(  # noqa: PERF401 - each row takes minutes
                        measure(folder, scale, workers=workers, rounds=options.rounds, policy=options.policy)
                        | {"size": text}
                    )
    result = {
        "wanted": WANTED,
        "policy": options.policy,
        "rows": rows,
        "machine": facts,
        "versions": versions(),
    }
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")
    return 0 if all(row["ratio"] >= WANTED for row in rows if row["workers"] == 0) else 1


def write_folder(folder: Path, number: int, size: tuple[int, int]) -> None:
    """JPEGs of crops of the photographs, one class a photograph."""
    rng = random.Random(SEED)
    photos = list(photographs().items())
    for index in range(number):
        name, photo = photos[index % len(photos)]
        path = folder / name / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop(photo, rng, size).save(path, quality=JPEG_QUALITY)


def measure(folder: Path, scale: tuple[float, float], *, workers: int, rounds: int, policy: str) -> Row:
    """Epochs of both loaders in turn; their start, where there are workers, comes before the clock."""
    loaders = {
        "phiscale": _ours(folder, scale, workers, policy),
        "timm": _timm(folder, scale, workers, policy),
    }
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for name, epoch in loaders.items():
        epoch()  # starts workers, and fills the page cache
        times[name] = []
    order = list(loaders)
    number = 0
    for _ in range(rounds):
        for name in order:
            began = time.perf_counter()
            number = loaders[name]()
            times[name].append(time.perf_counter() - began)
        order = order[1:] + order[:1]
    median, low, high = ratio(times["timm"], times["phiscale"])
    return {
        "workers": workers,
        "crop_scale": scale,
        "images": number,
        **{
            f"{name}_images_per_second": round(number / statistics.median(values), 1)
            for name, values in times.items()
        },
        "ratio": round(median, 3),
        "ratio_interval": [round(low, 3), round(high, 3)],
    }


def _ours(folder: Path, scale: tuple[float, float], workers: int, policy: str) -> Callable[[], int]:
    source = open_source(folder, val_fraction=0)
    preprocess = Preprocess.for_size(SIDE)
    augment = Augment(crop_scale=scale, policy="trivial" if policy == "trivial" else "none")
    loader = make_loader(
        source,
        source.records,
        TrainTransform(preprocess, augment),
        batch_size=BATCH,
        shuffle=True,
        seed=SEED,
        workers=workers,
    )
    return lambda: _count((normalize(images, preprocess), labels) for images, labels in loader)


def _timm(folder: Path, scale: tuple[float, float], workers: int, policy: str) -> Callable[[], int]:
    from timm.data import ImageDataset, create_transform
    from torchvision import transforms

    # The same filter on both sides: timm's own choice is either of two by chance.
    transform = create_transform(
        SIDE, is_training=True, scale=scale, color_jitter=None, interpolation="bicubic", hflip=0.5
    )
    if policy == "trivial":  # which timm has not; after crop and mirror, as its own policies
        transform.transforms.insert(2, transforms.TrivialAugmentWide())
    loader: DataLoader[Any] = DataLoader(
        ImageDataset(str(folder), transform=transform),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(SEED),
    )
    return lambda: _count(loader)


def _count(batches: Iterable[Any]) -> int:
    """Images of all batches, once they are here."""
    return sum(len(labels) for _, labels in batches)


if __name__ == "__main__":
    raise SystemExit(main())
