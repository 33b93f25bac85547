"""From images to labels: decode, prepare, run, rank. One bad image costs one answer, not the rest."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from phiscale.data.decode import ImageError, ImageInput
from phiscale.data.packed import PackedImage
from phiscale.deploy.hub import HubModel
from phiscale.deploy.pretrained import is_model_dir, open_pretrained
from phiscale.deploy.reading import FastDecoding, ImageReader
from phiscale.deploy.runtimes.base import Runtime, cores, open_chain
from phiscale.deploy.runtimes.chain import Candidate, RuntimeChain
from phiscale.errors import DataError
from phiscale.preprocess import Preprocess
from phiscale.spec import NetworkSpec
from phiscale.weights.config import ModelDir, read_config
from phiscale.weights.sources import HUB, IMAGENET, resolve

if TYPE_CHECKING:
    from phiscale.nn.network import Network

__all__ = ["FEW", "Prediction", "Predictor", "load"]

# Images per run of the network. Each core decodes and runs its own batches; the larger they are, the more
# memory they take, and from 4 on none was faster.
BATCH_SIZE = 4
# Setting a runtime up for throughput takes as long as some tens of images do without.
FEW = 64
# Batches under way per thread: one in work, one waiting.
_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one image.

    Attributes:
        source: The path, or for an image in memory its place in the input, such as ``image 3``.
        labels: The most likely classes, best first; none when the image could not be read.
        scores: Their probabilities.
        error: Why the image could not be read, or None.
    """

    source: str
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "source": self.source,
            "labels": list(self.labels),
            "scores": list(self.scores),
            "error": self.error,
        }


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Images that are read and run together, and the number of the first."""

    start: int
    images: Sequence[ImageInput]


class Predictor(HubModel):
    """Classifies images with the preprocessing and the class names of a model.

    `phiscale.load` opens a model directory, `from_weights` anybody's weights, and `from_pretrained` a model
    of the Hugging Face hub.

    Args:
        model: From `phiscale.weights.model_dir.read_config`.
        runtime: What runs the network.

    Attributes:
        model: The model directory's own description; for weights in memory, its path is that of their file.
        classes: Names of the classes, in the order of the logits.
    """

    def __init__(self, model: ModelDir, runtime: Runtime) -> None:
        self.model = model
        self.classes = model.classes
        self._chain = runtime if isinstance(runtime, RuntimeChain) else _alone(runtime, model)
        self._reader = ImageReader(model.preprocess)

    @classmethod
    def from_weights(
        cls,
        model: str | Path | NetworkSpec | None,
        weights: str | Path = IMAGENET,
        *,
        classes: Sequence[str] | None = None,
        preprocess: Preprocess | None = None,
        runtime: str = "auto",
    ) -> Self:
        """Predict with published weights, or with anybody's file.

        Class names and preprocessing are the publisher's, as far as the weights say them or they are
        published; nothing is written to disk.

        Args:
            model: A name from `phiscale.list_specs`, a JSON file or a spec; None takes the network that the
                weights are recognised as. Where nothing says with what padding and norm the weights were
                trained, those of a spec count.
            weights: ``"imagenet"``, a name of the catalog, a file or folder of any publisher, or
                ``hf://user/repository``.
            classes: Name of each class, in the order of the logits. Where nobody says them, they are
                ``class_0``, ``class_1``, …
            preprocess: How images are prepared.
            runtime: ``"auto"`` or ``"torch"``.

        Raises:
            ModelDirError: The weights cannot be had or read, are of another network, have no classifier, or
                do not say how images are prepared; or there is no such runtime.
            MissingDependencyError: The package with the weights is not installed.
        """
        described, network = open_pretrained(weights, model=model, classes=classes, preprocess=preprocess)
        return cls(described, open_chain(described, runtime, network=network))

    @classmethod
    def _open(
        cls,
        path: Path,
        *,
        name: str,
        runtime: str = "auto",
        classes: Sequence[str] | None = None,
        preprocess: Preprocess | None = None,
    ) -> Self:
        """Open a model directory, or whatever else lies there; `name` is what messages call it."""
        if not is_model_dir(path):
            described, network = open_pretrained(path, classes=classes, preprocess=preprocess, name=name)
            return cls(described, open_chain(described, runtime, network=network))
        model = read_config(path)
        model = replace(
            model, classes=tuple(classes or model.classes), preprocess=preprocess or model.preprocess
        )
        return cls(model, open_chain(model, runtime))

    def _network(self) -> Network:
        from phiscale.deploy.runtimes.torch import TorchRuntime
        from phiscale.weights.model_dir import load_network

        runtime = self._chain.runtime
        return runtime.network if isinstance(runtime, TorchRuntime) else load_network(self.model)

    @property
    def runtime(self) -> str:
        """Name of what runs the network at present, such as ``"openvino-bf16"``."""
        return self._chain.name

    @property
    def fast_decoding(self) -> FastDecoding | None:
        """How far the fast way of reading JPEGs was from the exact one; known after some 50 images."""
        return self._reader.fast_decoding

    def predict(
        self,
        images: Iterable[ImageInput] | ImageInput,
        *,
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
        exact: bool = False,
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: Paths, encoded bytes, PIL images, or arrays (H, W, C) or (H, W) of uint8; or one of them
                alone; or an array (N, H, W, C).
            top_k: Classes per answer; no more than there are.
            batch_size: Images per run of the network.
            exact: Whether JPEGs are read exactly as in training and evaluation. Otherwise they are read
                faster, with pixels within one grey level on average (`fast_decoding`).

        Returns:
            One answer per image, in their order. An image that cannot be read has `Prediction.error`.

        Raises:
            DataError: `top_k` or `batch_size` is below 1.
            ModelDirError: The network gives NaN, or no runtime works.
        """
        inputs: Iterable[Any] = [images] if _is_single(images) else images  # type: ignore[assignment]
        expected = len(inputs) if isinstance(inputs, Sized) else 0
        return list(self.stream(inputs, top_k=top_k, batch_size=batch_size, exact=exact, expected=expected))

    def stream(
        self,
        images: Iterable[ImageInput],
        *,
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
        exact: bool = False,
        start: int = 0,
        expected: int = 0,
    ) -> Iterator[Prediction]:
        """Classify images one after the other, in constant memory, however many there are.

        There is a thread per core; each decodes a batch and runs the network on it. A runtime that dies is
        replaced by the next one, down to PyTorch, with a warning in the log.

        Args:
            images: As in `predict`; read as needed, at most two batches per core ahead.
            top_k: Classes per answer.
            batch_size: Images per run of the network.
            exact: As in `predict`.
            start: How many images came before these; the numbers of images in memory go on from there.
            expected: How many come at least, as far as is known. Where they are many, the runtime is set up
                for throughput before the first one, and not on the way.

        Raises:
            DataError: `top_k` or `batch_size` is below 1, or `start` below 0.
            ModelDirError: The network gives NaN, or no runtime works.
        """
        for name, value, least in (("top_k", top_k, 1), ("batch_size", batch_size, 1), ("start", start, 0)):
            if value < least:
                raise DataError(f"{name} must be at least {least}, got {value}")
        reader = ImageReader(self.model.preprocess, exact=True) if exact else self._reader
        answer = partial(
            self._answer, reader=reader, top_k=min(top_k, len(self.classes)), many=expected > FEW
        )
        return _in_order(answer, _batches(images, batch_size, start))

    def _answer(self, batch: _Batch, *, reader: ImageReader, top_k: int, many: bool) -> list[Prediction]:
        """Read a batch and run the network on what could be read."""
        sources = [
            str(image) if isinstance(image, str | Path) else f"image {index}"
            for index, image in enumerate(batch.images, batch.start)
        ]
        read = [_read(reader, image) for image in batch.images]
        readable = [pixels for pixels in read if not isinstance(pixels, str)]
        many = many or batch.start >= FEW
        rows = iter(self._chain(np.stack(readable), many=many) if readable else ())
        return [
            Prediction(source=source, error=found)
            if isinstance(found, str)
            else self._rank(source, next(rows), top_k)
            for source, found in zip(sources, read, strict=True)
        ]

    def _rank(self, source: str, row: NDArray[np.float32], top_k: int) -> Prediction:
        # A stable sort gives equal scores in the order of the classes, on every machine.
        best = np.argsort(-row, kind="stable")[:top_k]
        return Prediction(
            source=source,
            labels=tuple(self.classes[index] for index in best),
            scores=tuple(float(row[index]) for index in best),
        )


def _alone(runtime: Runtime, model: ModelDir) -> RuntimeChain:
    """A chain of one runtime that is open already."""
    candidate = Candidate(name=type(runtime).__name__, open=lambda: runtime)
    return RuntimeChain([candidate], path=model.path)


def _read(reader: ImageReader, image: ImageInput) -> NDArray[np.uint8] | str:
    """Pixels (H, W, C), or why there are none; the reason alone, for the answer names the source anyway."""
    try:
        return reader(image.read() if isinstance(image, PackedImage) else image)
    except DataError as error:
        return error.reason if isinstance(error, ImageError) else str(error)


def _batches(images: Iterable[ImageInput], size: int, start: int) -> Iterator[_Batch]:
    remaining = iter(images)
    while batch := list(itertools.islice(remaining, size)):
        yield _Batch(start=start, images=batch)
        start += len(batch)


def _in_order(
    answer: Callable[[_Batch], list[Prediction]], batches: Iterator[_Batch]
) -> Generator[Prediction]:
    """The answers to all batches, with one thread per core at work."""
    begin = list(itertools.islice(batches, 2))
    if len(begin) < 2:  # not worth a thread
        yield from itertools.chain.from_iterable(map(answer, begin))
        return
    batches = itertools.chain(begin, batches)
    waiting: deque[Future[list[Prediction]]] = deque()
    pool = ThreadPoolExecutor(cores(), thread_name_prefix="predict")
    try:
        while True:
            for batch in itertools.islice(batches, _AHEAD * cores() - len(waiting)):
                waiting.append(pool.submit(answer, batch))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _is_single(images: object) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, str | Path | bytes) or not isinstance(images, Iterable)


def load(source: str | Path, *, runtime: str = "auto") -> Predictor:
    """Open a model directory, or a model of the Hugging Face hub, for prediction.

    Args:
        source: A directory as `phiscale.save` or `phiscale fit` wrote it; or ``hf://user/repository``, with
            ``@revision`` where it is not the main branch's. For other weights there is
            `Predictor.from_weights`.
        runtime: ``"auto"`` takes the fastest export that is there and PyTorch where there is none. Otherwise
            ``"torch"``, ``"openvino"``, ``"onnx"``, or one export by name, such as ``"openvino-int8"``.

    Raises:
        ModelDirError: No model directory, damaged, incomplete, not to be had, no such runtime, or the model
            has no export for it.
        MissingDependencyError: The runtime is not installed.
    """
    if str(source).startswith(HUB):
        path, _ = resolve(str(source))
        return Predictor._open(path, name=str(source), runtime=runtime)
    model = read_config(source)
    return Predictor(model, open_chain(model, runtime))
