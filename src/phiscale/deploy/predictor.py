"""From images to labels: decode, prepare, run, rank. One bad image costs one answer, not the rest."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from phiscale.data.decode import ImageError, ImageInput, decode
from phiscale.data.sizes import fit_size
from phiscale.deploy.hub import HubModel
from phiscale.deploy.pretrained import is_model_dir, open_pretrained
from phiscale.deploy.runtimes.base import Runtime, open_runtime
from phiscale.errors import DataError, ModelDirError
from phiscale.preprocess import Preprocess
from phiscale.spec import NetworkSpec
from phiscale.weights.config import ModelDir, read_config
from phiscale.weights.sources import HUB, IMAGENET, resolve

if TYPE_CHECKING:
    from phiscale.nn.network import Network

__all__ = ["Prediction", "Predictor", "load"]

_MAX_THREADS = 8


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
class _Decoded:
    source: str
    pixels: NDArray[np.uint8] | None = None
    error: str | None = None


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
        self._runtime = runtime

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
        return cls(described, open_runtime(described, runtime, network=network))

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
            return cls(described, open_runtime(described, runtime, network=network))
        model = read_config(path)
        model = replace(
            model, classes=tuple(classes or model.classes), preprocess=preprocess or model.preprocess
        )
        return cls(model, open_runtime(model, runtime))

    def _network(self) -> Network:
        from phiscale.deploy.runtimes.torch import TorchRuntime
        from phiscale.weights.model_dir import load_network

        return self._runtime.network if isinstance(self._runtime, TorchRuntime) else load_network(self.model)

    def predict(
        self, images: Iterable[ImageInput] | ImageInput, *, top_k: int = 5, batch_size: int = 16
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: Paths, encoded bytes, PIL images, or arrays (H, W, C) or (H, W) of uint8; or one of them
                alone; or an array (N, H, W, C).
            top_k: Classes per answer; no more than there are.
            batch_size: Images per run of the network.

        Returns:
            One answer per image, in their order. An image that cannot be read has `Prediction.error`.

        Raises:
            DataError: `top_k` or `batch_size` is below 1.
            ModelDirError: The network gives NaN.
        """
        inputs: Iterable[Any] = [images] if _is_single(images) else images  # type: ignore[assignment]
        return list(self.stream(inputs, top_k=top_k, batch_size=batch_size))

    def stream(
        self, images: Iterable[ImageInput], *, top_k: int = 5, batch_size: int = 16
    ) -> Iterator[Prediction]:
        """Classify images one after the other, in constant memory, however many there are.

        The next batch is decoded in threads while the network works on the present one.

        Args:
            images: As in `predict`; read as needed, at most two batches ahead.
            top_k: Classes per answer.
            batch_size: Images per run of the network.

        Raises:
            DataError: `top_k` or `batch_size` is below 1.
            ModelDirError: The network gives NaN.
        """
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            if value < 1:
                raise DataError(f"{name} must be at least 1, got {value}")
        return self._stream(images, min(top_k, len(self.classes)), batch_size)

    def _stream(self, images: Iterable[ImageInput], top_k: int, batch_size: int) -> Iterator[Prediction]:
        decoded = self._decode_ahead(images, window=2 * batch_size)
        try:
            while batch := list(itertools.islice(decoded, batch_size)):
                yield from self._classify(batch, top_k)
        finally:
            decoded.close()

    def _decode_ahead(self, images: Iterable[ImageInput], *, window: int) -> Generator[_Decoded]:
        """Decode in threads, in order, with at most `window` images under way."""
        numbered = enumerate(images)
        waiting: deque[Future[_Decoded]] = deque()
        pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="decode")
        try:
            while True:
                for index, image in itertools.islice(numbered, window - len(waiting)):
                    waiting.append(pool.submit(self._decode, index, image))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _classify(self, batch: list[_Decoded], top_k: int) -> Iterator[Prediction]:
        readable = [item.pixels for item in batch if item.pixels is not None]
        rows: Iterator[NDArray[np.float32]] = iter(self._scores(np.stack(readable)) if readable else ())
        for item in batch:
            if item.pixels is None:
                yield Prediction(source=item.source, error=item.error)
                continue
            row = next(rows)
            # A stable sort gives equal scores in the order of the classes, on every machine.
            best = np.argsort(-row, kind="stable")[:top_k]
            yield Prediction(
                source=item.source,
                labels=tuple(self.classes[index] for index in best),
                scores=tuple(float(row[index]) for index in best),
            )

    def _scores(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores = self._runtime(images)
        if not np.isfinite(scores).all():
            raise ModelDirError(
                f"the network in {self.model.path} gives NaN; its weights are broken, train again"
            )
        return scores

    def _decode(self, index: int, image: ImageInput) -> _Decoded:
        source = str(image) if isinstance(image, str | Path) else f"image {index}"
        preprocess = self.model.preprocess
        try:
            picture = decode(image, background=preprocess.background, channels=preprocess.channels)
            pixels = np.asarray(fit_size(picture, preprocess))
        except DataError as error:
            # The reason alone: the source is in the answer anyway.
            reason = error.reason if isinstance(error, ImageError) else str(error)
            return _Decoded(source=source, error=reason)
        return _Decoded(source=source, pixels=pixels if pixels.ndim == 3 else pixels[:, :, None])


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
        runtime: ``"auto"`` or ``"torch"``.

    Raises:
        ModelDirError: No model directory, damaged, incomplete, not to be had, or no such runtime.
    """
    if str(source).startswith(HUB):
        path, _ = resolve(str(source))
        return Predictor._open(path, name=str(source), runtime=runtime)
    model = read_config(source)
    return Predictor(model, open_runtime(model, runtime))
