"""What each epoch gave, and what follows from it: the best epoch, and when to stop.

Early stopping and the choice of the best epoch are pure functions of the history, so a resumed run
decides as an unbroken one without any counter to restore.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiscale.errors import TrainingError
from phiscale.weights.files import write_text

__all__ = [
    "HISTORY",
    "EpochRecord",
    "best_epoch",
    "epochs_done",
    "out_of_patience",
    "read_history",
    "standard_error",
    "write_history",
]

HISTORY = "history.json"


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of training.

    Attributes:
        epoch: Its number, from 1.
        learning_rate: Of the classifier, at the last step.
        train_loss: Mean over the epoch, with label smoothing and mixup.
        train_top1: Share of training images classified right while training, in [0, 1].
        val_loss: Cross entropy on the validation images; None without any.
        val_top1: Share of validation images classified right, in [0, 1]; None without any.
        val_images: Validation images; None without any, and in histories of version 0.1.
        seconds: The whole epoch, with validation.
        images_per_second: Of training alone.
        input_share: Of the seconds, the share in which training waited for images; None where nobody looked.
        step_share: Of the seconds, the share of training steps. What is left are validation and checkpoints.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_top1: float
    val_loss: float | None = None
    val_top1: float | None = None
    val_images: int | None = None
    seconds: float
    images_per_second: float
    input_share: float | None = None
    step_share: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EpochRecord:
        """Inverse of `to_dict`."""
        return cls(**data)


def best_epoch(history: Sequence[EpochRecord]) -> EpochRecord | None:
    """The last epoch whose validation top-1 is within one standard error of the highest.

    On few images the highest of many epochs is so by chance; among those that cannot be told apart from it,
    the one that has trained longest is taken (the rule of one standard error, Breiman et al. 1984). The error
    is that of a share p of n images, √(p (1 − p) / n). Where n is not known, it counts as 0 and the last of
    the highest is taken. Where there was no validation, the last epoch.

    An epoch that is not the best so far never becomes it, so that one network has to be kept.
    """
    if not history:
        return None
    if history[-1].val_top1 is None:
        return history[-1]
    top = max(history, key=lambda record: (record.val_top1 or 0.0, record.epoch))
    highest = top.val_top1 or 0.0
    least = highest - standard_error(highest, top.val_images)
    return max(
        (record for record in history if (record.val_top1 or 0.0) >= least), key=lambda record: record.epoch
    )


def standard_error(share: float, images: int | None) -> float:
    """Of a share that was counted on so many images; 0 where their number is not known.

    Examples:
        >>> standard_error(0.5, 100)
        0.05
    """
    return math.sqrt(share * (1 - share) / images) if images else 0.0


def out_of_patience(history: Sequence[EpochRecord], patience: int) -> bool:
    """Whether the last `patience` epochs brought no better validation top-1; patience 0 waits forever."""
    if patience == 0 or len(history) <= patience or history[-1].val_top1 is None:
        return False
    scores = [record.val_top1 or 0.0 for record in history]
    return max(scores[-patience:]) <= max(scores[:-patience])


def write_history(directory: Path, history: Iterable[EpochRecord]) -> None:
    """Write ``history.json``, whole or not at all.

    Raises:
        TrainingError: It cannot be written.
    """
    text = json.dumps([record.to_dict() for record in history], indent=2)
    try:
        write_text(directory / HISTORY, text + "\n")
    except OSError as error:
        raise TrainingError(f"cannot write {directory / HISTORY}: {error}; make room and go on") from None


def epochs_done(directory: Path) -> int:
    """Finished epochs of the run in a directory; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return len(json.loads((directory / HISTORY).read_text(encoding="utf-8")))
    return 0


def read_history(directory: Path) -> tuple[EpochRecord, ...]:
    """Inverse of `write_history`.

    Raises:
        OSError: There is no history in the directory.
    """
    records = json.loads((directory / HISTORY).read_text(encoding="utf-8"))
    return tuple(EpochRecord.from_dict(record) for record in records)
