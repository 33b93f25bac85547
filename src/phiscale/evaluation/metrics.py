"""From logits and labels to numbers: accuracy, per-class scores, confusion, likelihood, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from phiscale.errors import DataError, ModelDirError, require

__all__ = ["CALIBRATION_BINS", "ClassMetrics", "Confusion", "Metrics", "compute_metrics"]

CALIBRATION_BINS = 15
_MATRIX_IN_JSON = 100
_TOP_CONFUSIONS = 20


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """Scores of one class. Where the denominator is zero, a score is 0, as in scikit-learn.

    Attributes:
        name: The class.
        precision: Share of the images called so that are so.
        recall: Share of the images that are so that were called so.
        f1: Harmonic mean of the two.
        support: Images of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Images of one class that were taken for another.

    Attributes:
        label: The class that they are.
        predicted: The class that they were taken for.
        count: How many.
    """

    label: str
    predicted: str
    count: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Metrics:
    """Quality of a classifier on a set of images. Shares lie between 0 and 1.

    Attributes:
        num_images: Images that it was computed from.
        top1: Share whose most likely class is right.
        top5: Share whose class is among the five most likely; None where there are no more than five classes,
            of which it would tell nothing.
        balanced_accuracy: Mean recall over the classes that have images.
        macro_f1: Mean F1 over the classes that have images or predictions.
        nll: Mean negative log-likelihood of the right class, in nats.
        ece: Expected calibration error: mean distance of confidence and accuracy over 15 equal bins of
            the confidence, weighted by images.
        per_class: Scores of each class, in the order of the logits.
        confusion_matrix: (K, K) counts; row: what an image is, column: what it was taken for.
    """

    num_images: int
    top1: float
    top5: float | None
    balanced_accuracy: float
    macro_f1: float
    nll: float
    ece: float
    per_class: tuple[ClassMetrics, ...] = field(repr=False)
    confusion_matrix: NDArray[np.int64] = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return tuple(item.name for item in self.per_class)

    @property
    def near_chance(self) -> bool:
        """Whether top-1 is no more than two standard errors above that of always naming the largest class."""
        chance = float(self.confusion_matrix.sum(axis=1).max()) / self.num_images
        return self.top1 <= chance + 2 * math.sqrt(chance * (1 - chance) / self.num_images)

    def confusions(self, limit: int = _TOP_CONFUSIONS) -> tuple[Confusion, ...]:
        """The most frequent confusions of two classes, most frequent first."""
        wrong = self.confusion_matrix.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
        rows, columns = np.unravel_index(order, wrong.shape)
        names = self.classes
        return tuple(
            Confusion(label=names[row], predicted=names[column], count=int(wrong[row, column]))
            for row, column in zip(rows, columns, strict=True)
            if wrong[row, column]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON. Above 100 classes the confusion matrix is left out."""
        matrix = self.confusion_matrix
        return {
            "num_images": self.num_images,
            "top1": self.top1,
            "top5": self.top5,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "nll": self.nll,
            "ece": self.ece,
            "per_class": [vars(item) for item in self.per_class],
            "confusions": [vars(item) for item in self.confusions()],
            "confusion_matrix": matrix.tolist() if len(matrix) <= _MATRIX_IN_JSON else None,
        }


def compute_metrics(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Metrics:
    """Compare logits with the right classes.

    Args:
        logits: (N, K), floating point, before the softmax.
        labels: (N,), integers from 0 to K - 1.
        classes: K names.

    Raises:
        DataError: There are no images, fewer than two classes, or shapes and labels do not fit.
        ModelDirError: Logits are not finite.
        MissingDependencyError: torchmetrics is not installed.
    """
    num_classes = len(classes)
    _check(logits, labels, num_classes)
    functional = require("torchmetrics.functional.classification", extra="train")
    # Sums over many images in float32 lose digits that the metrics file shows.
    logits = logits.detach().cpu().double()
    labels = labels.detach().cpu().long()
    probabilities = logits.softmax(dim=1)
    options = {"num_classes": num_classes, "validate_args": False}

    def accuracy(top_k: int) -> float:
        return float(
            functional.multiclass_accuracy(probabilities, labels, average="micro", top_k=top_k, **options)
        )

    def scores(name: str) -> list[float]:
        compute = getattr(functional, f"multiclass_{name}")
        return [float(value) for value in compute(probabilities, labels, average="none", **options)]

    matrix = functional.multiclass_confusion_matrix(probabilities, labels, **options).numpy()
    precision, recall, f1 = scores("precision"), scores("recall"), scores("f1_score")
    support = matrix.sum(axis=1)
    seen = support > 0
    return Metrics(
        num_images=len(labels),
        top1=accuracy(1),
        top5=accuracy(5) if num_classes > 5 else None,
        balanced_accuracy=float(np.mean(np.asarray(recall)[seen])),
        macro_f1=float(np.mean(np.asarray(f1)[seen | (matrix.sum(axis=0) > 0)])),
        nll=float(cross_entropy(logits, labels)),
        ece=float(
            functional.multiclass_calibration_error(probabilities, labels, n_bins=CALIBRATION_BINS, **options)
        ),
        per_class=tuple(
            ClassMetrics(name=name, precision=p, recall=r, f1=f, support=int(n))
            for name, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
        ),
        confusion_matrix=matrix,
    )


def _check(logits: Tensor, labels: Tensor, num_classes: int) -> None:
    if num_classes < 2:
        raise DataError(f"metrics need at least two classes, got {num_classes}")
    if logits.dim() != 2 or logits.shape[1] != num_classes or labels.shape != logits.shape[:1]:
        raise DataError(
            f"logits must have shape (N, {num_classes}) and labels (N,), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if not len(labels):
        raise DataError("there are no images to measure on; give at least one")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise DataError(f"labels must lie between 0 and {num_classes - 1}, got {found}")
    if not torch.isfinite(logits).all():
        broken = int((~torch.isfinite(logits).all(dim=1)).sum())
        raise ModelDirError(
            f"the network gives NaN or infinity for {broken} of {len(labels)} images; "
            "its weights are broken, so train again with a lower learning rate"
        )
