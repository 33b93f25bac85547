"""One training of a search: a network in, its top-1 on the validation images out, no model directory left."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from phiscale.data.augment import TrainTransform
from phiscale.data.cache import CacheMode, PixelCache, open_cache
from phiscale.data.loading import make_loader
from phiscale.data.sources import ImageSource, Split
from phiscale.data.transforms import EvalTransform, ImageTransform
from phiscale.errors import DataError, TrainingError
from phiscale.families import get_spec
from phiscale.nn.network import build_network
from phiscale.pipeline.plan import FitPlan, phases_within, plan_fit
from phiscale.preprocess import Preprocess, ResizeMode
from phiscale.search.objective import Report, Score
from phiscale.spec import NetworkSpec
from phiscale.training.history import EpochRecord
from phiscale.training.recipe import Recipe
from phiscale.training.resident import LabelledImages, train_resident, why_not_resident
from phiscale.training.train import train
from phiscale.weights.files import replacing

__all__ = ["ImageObjective", "TrialPlan", "one_thread", "plan_trials"]


class _Stopped(Exception):  # noqa: N818 - no error: the search has seen enough
    """Ends a training from within, after an epoch."""


@dataclass(frozen=True, kw_only=True)
class ImageObjective:
    """Trains a network on images, as `phiscale.fit` would, and throws it away.

    The top-1 is that of the last epoch, not of the best one, which would favour networks whose validation
    curve is rough. A training on a CPU uses one thread, so that its result does not depend on how many
    others run beside it. Decoded images are kept in a file that all trainings and processes share.

    Attributes:
        source: The usable images with their splits; train and val must not be empty.
        preprocess: How images are prepared, but for the size, which is the network's.
        recipe: How to train.
        scratch: Folder for what a training writes while it runs; None is the system's.
        latency: Measures a network in milliseconds, where latencies are wanted.
        cache_dir: Folder of the decoded images; None is the user's cache.
        on_gpu: Whether the trainings have a GPU. It is settled here and not where a training runs, because
            other random numbers are drawn there, and all machines shall give the same scores.
    """

    source: ImageSource
    preprocess: Preprocess
    recipe: Recipe
    scratch: Path | None = None
    latency: Callable[[NetworkSpec], float] | None = None
    cache_dir: Path | None = None
    on_gpu: bool = False
    _caches: dict[str, PixelCache | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for split in ("train", "val"):
            if not self.source.split(split):
                raise DataError(
                    f"a search needs {split} images, and {self.source.location} has none; "
                    "leave out the split folders, or hold some out"
                )

    def __getstate__(self) -> dict[str, Any]:
        # Other processes read the same file; an array in memory would be copied to each.
        on_disk = {
            split: cache
            for split, cache in self._caches.items()
            if cache is not None and cache.path is not None
        }
        return {**self.__dict__, "_caches": on_disk}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Another machine may not have the file: then it needs the images, and makes a file of its own.
        here = {split: cache for split, cache in state["_caches"].items() if cache.is_here()}
        self.__dict__.update(state, _caches=here)

    def __call__(
        self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        """Train a network once.

        Args:
            spec: The network; its classes and channels are made those of the images.
            seed: Decides initial weights, order and augmentation. The split of the images stays.
            epochs: How long; None is the recipe's own number.
            report: Told the top-1 after each epoch; training stops where it answers True.

        Raises:
            TrainingError: The loss is not finite, or nothing can be written.
            DataError: An image cannot be read, for example on a machine that does not have it.
            KeyboardInterrupt: Ctrl-C or SIGTERM came.
        """
        history: list[EpochRecord] = []

        def note(record: EpochRecord) -> None:
            history.append(record)
            assert record.val_top1 is not None
            if report is not None and report(record.epoch, record.val_top1):
                raise _Stopped

        with contextlib.suppress(_Stopped), one_thread():
            self._train(self.for_data(spec), self._recipe(seed, epochs), note)
        top1 = history[-1].val_top1
        assert top1 is not None
        return Score(
            top1=top1,
            epochs=len(history),
            train_seconds=sum(record.seconds for record in history),
            latency_ms=None if self.latency is None else self.latency(self.for_data(spec)),
        )

    def for_data(self, spec: NetworkSpec) -> NetworkSpec:
        """A network with the classes and channels of the images."""
        return replace(spec, num_classes=len(self.source.classes), in_channels=self.preprocess.channels)

    def identity(self) -> dict[str, Any]:
        """What decides the scores beside network, seed and epochs, as plain values; for `TrialStore`.

        Where the images lie does not count, so that they may be moved.
        """
        digest = hashlib.sha256()
        for record in self.source.records:
            digest.update(f"{record.split}\0{record.label}\0{record.id}\0".encode("utf-8", "surrogateescape"))
        recipe = self.recipe.to_dict()
        if not self.recipe.fast_layers:  # searches that were begun before there were any go on
            del recipe["fast_layers"]
        of_the_trial_or_machine = ("seed", "workers", "cache", "tune")
        # Other random numbers give other scores.
        trainer = {"trainer": "resident"} if self._is_resident else {}
        return trainer | {
            "images": f"{len(self.source)} images, {digest.hexdigest()[:16]}",
            "classes": len(self.source.classes),
            "recipe": {n: v for n, v in recipe.items() if n not in of_the_trial_or_machine},
            "preprocess": {n: v for n, v in self.preprocess.to_dict().items() if n != "size"},
        }

    def prepare(self) -> None:
        """Decode the images once, before several processes would do it at the same time."""
        for split in ("train", "val"):
            self._cache(split)

    # -- one training --------------------------------------------------------------------------

    @property
    def _is_resident(self) -> bool:
        """Whether the images lie on a GPU, each step being one graph; else Lightning trains."""
        return self.on_gpu and why_not_resident(self.recipe) is None

    def _train(self, spec: NetworkSpec, recipe: Recipe, note: Callable[[EpochRecord], None]) -> None:
        preprocess = self.preprocess_for(spec)
        spec = recipe.apply_to(spec)
        # The seed decides the initial weights too, and the caller's random state is left alone.
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            net = build_network(spec)
        if self._is_resident:
            training, validation = (self._sized_images(split, preprocess) for split in ("train", "val"))
            train_resident(net, training, validation, recipe=recipe, preprocess=preprocess, on_epoch=note)
            return
        with self._folder() as folder:
            result = train(
                net,
                self._loader("train", TrainTransform(preprocess, recipe.augment), recipe),
                self._loader("val", EvalTransform(preprocess), recipe),
                recipe=recipe,
                out=folder,
                classes=self.source.classes,
                preprocess=preprocess,
                progress=False,
                on_epoch=note,
            )
            # Also one that came in the training's last moment: whoever presses Ctrl-C means the search.
            if result.stop_requested:
                raise KeyboardInterrupt

    def _loader(
        self, split: Split, transform: ImageTransform, recipe: Recipe
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        for_training = isinstance(transform, TrainTransform)
        return make_loader(
            self.source,
            self.source.split(split),
            transform,
            batch_size=recipe.batch_size,
            shuffle=for_training,
            drop_last=for_training,
            seed=recipe.seed,
            workers=recipe.workers,
            exact_decode=recipe.exact_decode,
            # With another image in its place, this score could not be compared with the others.
            on_error="raise",
            cache=self._cache(split),
        )

    def _sized_images(self, split: Split, preprocess: Preprocess) -> LabelledImages:
        """All images of a split at a network's size, in a file that the other processes read."""
        labels = torch.tensor([record.label for record in self.source.split(split)])
        height, width = preprocess.size
        file = None if self.scratch is None else self.scratch / f"{split}-{height}x{width}.npy"
        if file is not None and file.is_file():
            return LabelledImages(torch.from_numpy(np.load(file)), labels)
        loader = self._loader(split, EvalTransform(preprocess), self.recipe)
        images = torch.cat([batch for batch, _ in loader])
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, images.numpy())
        return LabelledImages(images, labels)

    def _recipe(self, seed: int, epochs: int | None) -> Recipe:
        changes: dict[str, Any] = {"seed": seed}
        if epochs is not None:
            changes |= {"epochs": epochs, **phases_within(self.recipe, epochs)}
        return self.recipe.override(changes)

    def preprocess_for(self, spec: NetworkSpec) -> Preprocess:
        """That of `phiscale.fit` for the network's size."""
        fraction = self.preprocess.crop_fraction
        if fraction != 1.0:  # the authors cut off 16 px at every size
            fraction = Preprocess.for_size(spec.image_size).crop_fraction
        return replace(self.preprocess, size=spec.image_size, crop_fraction=fraction)

    def _cache(self, split: Split) -> PixelCache | None:
        if split not in self._caches:
            self._caches[split] = self._open_cache(split)
        return self._caches[split]

    def _open_cache(self, split: Split) -> PixelCache | None:
        chosen = self.recipe.cache
        # A file is shared by all processes and by the next search; memory is of one process.
        mode: CacheMode = "disk" if chosen == "auto" else chosen
        records = self.source.split(split)
        try:
            return open_cache(self.source, records, self.preprocess, mode=mode, folder=self.cache_dir)
        except DataError:
            if chosen != "auto":
                raise
            return None  # no room: images are decoded in every epoch

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """A folder that is gone afterwards."""
        try:
            if self.scratch is not None:
                self.scratch.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(
                dir=self.scratch, prefix="trial-", ignore_cleanup_errors=True
            )
        except OSError as error:
            where = self.scratch or tempfile.gettempdir()
            raise TrainingError(f"cannot write to {where}: {error.strerror or error}") from None
        with folder as name:
            yield Path(name)


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """Images and baseline of a search, looked at once.

    Attributes:
        baseline: The network at φ = 0, with the classes and channels of the images.
        objective: Trains networks on them.
        fit: The plan that a `fit` of the baseline would have.
        notes: What was chosen and why, a sentence each.
    """

    baseline: NetworkSpec
    objective: ImageObjective
    fit: FitPlan
    notes: tuple[str, ...]


def plan_trials(
    images: str | Path,
    *,
    baseline: str | Path | NetworkSpec = "efficientnet_b0",
    recipe: str | Path | Recipe | None = None,
    overrides: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    resize: ResizeMode = "crop",
    val_fraction: float = 0.2,
    train_images: int | None = None,
    split_file: Path | None = None,
    scratch: Path | None = None,
    latency: Callable[[NetworkSpec], float] | None = None,
    cache_dir: Path | None = None,
    on_gpu: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrialPlan:
    """Scan images and settle what all trainings of a search have in common.

    Args:
        images: As for `phiscale.fit`.
        baseline: A name, which is fitted to the images as by `phiscale.fit` (their size, strides for small
            ones); or a JSON file or spec, which is taken as it is.
        recipe: As for `phiscale.fit`.
        overrides: Settings of the recipe to change: dotted name → value.
        image_size: Side or (height, width) of the baseline in pixels.
        resize: How images are brought to the size.
        val_fraction: Share of the training images held out, where the data has no val split.
        train_images: At most so many images to train on, drawn evenly from the classes; None is all of them.
        split_file: CSV with `path` and `split` that decides the splits.
        scratch: Folder for what a training writes while it runs; None is the system's.
        latency: Measures a network in milliseconds, where latencies are wanted.
        cache_dir: Folder of the decoded images; None is the user's cache.
        on_gpu: Whether the trainings have a GPU; None is whether this machine has one.
        progress: Told of the scan: images done, and all.

    Raises:
        DataError: The images cannot be used, or there are none to train or to validate on.
        SpecError: The baseline or its size is not valid.
        RecipeError: The recipe is not valid.
    """
    fit = plan_fit(
        images,
        model=baseline,
        recipe=recipe if recipe is not None else "fast",
        # What a network scores must not hang on what was fastest when it was trained.
        overrides={**(overrides or {}), "tune": "off"},
        image_size=image_size,
        resize=resize,
        val_fraction=val_fraction,
        split_file=split_file,
        progress=progress,
    )
    if fit.weights is not None:
        raise DataError("a search trains from scratch; take another recipe than finetune, such as fast")
    if train_images is not None:
        fit = replace(fit, source=fit.source.with_fewer("train", train_images, seed=fit.recipe.seed))
    objective = ImageObjective(
        source=fit.source,
        preprocess=fit.preprocess,
        recipe=fit.recipe,
        scratch=scratch,
        latency=latency,
        cache_dir=cache_dir,
        on_gpu=torch.cuda.is_available() if on_gpu is None else on_gpu,
    )
    is_name = not isinstance(baseline, NetworkSpec) and not str(baseline).endswith(".json")
    as_it_is = not is_name and image_size is None
    spec = objective.for_data(get_spec(baseline) if as_it_is else fit.spec)
    return TrialPlan(
        baseline=spec, objective=objective, fit=replace(fit, spec=spec), notes=() if as_it_is else fit.notes
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread of the CPU, as every training of a search does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
