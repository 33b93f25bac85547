"""What an evaluation found: metrics, and everything that a report needs beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiscale.evaluation.metrics import Metrics

__all__ = ["Evaluation", "Sample", "Skipped"]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An image that could not be read.

    Attributes:
        id: Its id in the source.
        reason: What is wrong with it.
    """

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The answer for one image.

    Attributes:
        id: Its id in the source.
        label: The right class.
        predicted: The most likely class.
        confidence: Probability of `predicted`.
    """

    id: str
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation(Metrics):
    """Metrics of a model directory on a set of images, with how they were measured.

    Attributes:
        data: Location, split, and what settled the split: val_fraction, seed, split_file.
        settings: Batch size, workers, device, limit.
        skipped: Images that could not be read; they count in no metric.
        images_per_second: From files to logits.
        network_images_per_second: Normalisation and network alone, without the first batch where there
            are more (it pays for what is set up on first use).
        ids: Id of each image that was read.
        labels: (N,) right classes.
        probabilities: (N, K).
        path: The file that was written, see `evaluate`; None where the model directory is not writable.
    """

    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    skipped: tuple[Skipped, ...] = ()
    images_per_second: float
    network_images_per_second: float
    ids: tuple[str, ...] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    probabilities: NDArray[np.float32] = field(repr=False)
    path: Path | None = None

    def samples(self) -> Iterator[Sample]:
        """The answer for each image that was read, in the order of the source."""
        names = self.classes
        best = self.probabilities.argmax(axis=1)
        for index, image_id in enumerate(self.ids):
            yield Sample(
                id=image_id,
                label=names[self.labels[index]],
                predicted=names[best[index]],
                confidence=float(self.probabilities[index, best[index]]),
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; single answers are left out."""
        return {
            **super().to_dict(),
            "images_per_second": self.images_per_second,
            "network_images_per_second": self.network_images_per_second,
            "data": dict(self.data),
            "settings": dict(self.settings),
            "skipped": [dataclasses.asdict(item) for item in self.skipped],
        }
