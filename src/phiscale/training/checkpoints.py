"""Checkpoints that survive a kill at any moment.

    checkpoints/last.ckpt       after the last whole epoch, or some minutes later within the next one
    checkpoints/previous.ckpt   the one before

A new checkpoint is written whole under a temporary name; then the last one becomes the previous one,
and the new one, synced, the last. A kill leaves at least one of them whole. Nothing is trusted for its
name: before a checkpoint is used, the checksum of every part is verified (torch.load does not do that),
and a damaged last one gives way to the previous one.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from phiscale.errors import TrainingError
from phiscale.training.recipe import Recipe
from phiscale.weights.files import replacing, sync_folder

__all__ = [
    "CHECKPOINTS",
    "EpochPart",
    "RunState",
    "SafeCheckpointIO",
    "clear",
    "exist",
    "find",
    "last_path",
    "tidy",
]

CHECKPOINTS = "checkpoints"
_KEY = "phiscale"
# Settings that change how fast a run is, not what it computes.
_FREE = ("workers", "cache", "checkpoint_minutes")

# What reading a file that is cut off, overwritten or not a checkpoint at all can raise.
_DAMAGE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    zipfile.BadZipFile,
    pickle.PickleError,
)

logger = logging.getLogger("phiscale.training")


@dataclass(frozen=True, kw_only=True)
class EpochPart:
    """How far a run is within an epoch.

    Attributes:
        batches: Batches that are done.
        seconds: What they took.
        input_seconds: Of these, waiting for images.
        step_seconds: Of these, training steps.
    """

    batches: int = 0
    seconds: float = 0.0
    input_seconds: float = 0.0
    step_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a run is, stored in each of its checkpoints, so that no other run goes on from them.

    Attributes:
        recipe: The recipe, resolved.
        spec: `NetworkSpec.to_dict` of the network.
        classes: Names of the classes.
        steps_per_epoch: Batches in an epoch.
        history: `EpochRecord.to_dict` of every finished epoch.
        part: Of the epoch after those.
    """

    recipe: Recipe
    spec: Mapping[str, Any]
    classes: tuple[str, ...]
    steps_per_epoch: int
    history: tuple[dict[str, Any], ...] = ()
    part: EpochPart = EpochPart()

    def put_into(self, checkpoint: dict[str, Any]) -> None:
        """Store the state in a checkpoint of Lightning."""
        checkpoint[_KEY] = {
            "recipe": self.recipe.to_dict(),
            "spec": dict(self.spec),
            "classes": list(self.classes),
            "steps_per_epoch": self.steps_per_epoch,
            "history": list(self.history),
            "part": dataclasses.asdict(self.part),
        }

    @classmethod
    def take_from(cls, checkpoint: Mapping[str, Any]) -> RunState:
        """Inverse of `put_into`."""
        stored = checkpoint[_KEY]
        return cls(
            recipe=Recipe.from_dict(stored["recipe"]),
            spec=stored["spec"],
            classes=tuple(stored["classes"]),
            steps_per_epoch=stored["steps_per_epoch"],
            history=tuple(stored["history"]),
            part=EpochPart(**stored.get("part", {})),
        )

    def require_same(self, stored: RunState) -> None:
        """Check that a stored run is this one.

        Raises:
            TrainingError: They differ; the message names in what.
        """
        found = {n: v for n, v in stored.recipe.differences(self.recipe).items() if n not in _FREE}
        found |= {
            f"spec.{name}": (stored.spec.get(name), self.spec.get(name))
            for name in {**stored.spec, **self.spec}
            if stored.spec.get(name) != self.spec.get(name)
        }
        for name in ("classes", "steps_per_epoch"):
            if getattr(stored, name) != getattr(self, name):
                found[name] = (getattr(stored, name), getattr(self, name))
        if found:
            changes = [f"{name} was {_short(old)}, is {_short(new)}" for name, (old, new) in found.items()]
            raise TrainingError(
                f"cannot resume, this is another run than the stored one: {'; '.join(changes)}. "
                "Give the same data and settings again, or start anew in another directory"
            )


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's way to disk, with the order of writes described at the top of this module."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; the one that was there becomes ``previous.ckpt``.

        Raises:
            TrainingError: It cannot be written; the one that was there is still the last.
        """
        last = Path(path)
        try:
            last.parent.mkdir(parents=True, exist_ok=True)
            with replacing(last) as temporary:
                torch.save(checkpoint, temporary)
                if last.exists():
                    last.replace(_previous(last))
        except (OSError, RuntimeError) as error:  # torch tells of a full disk as a RuntimeError
            raise TrainingError(
                f"cannot write the checkpoint {last}: {error}; make room and go on with resume (--resume)"
            ) from None
        sync_folder(last.parent)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; no code in it is run, whatever `weights_only` says."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint


def last_path(directory: Path) -> Path:
    """Where the last checkpoint of a run in `directory` is."""
    return directory / CHECKPOINTS / "last.ckpt"


def exist(directory: Path) -> bool:
    """Whether there is a checkpoint of a run in `directory`, whole or not."""
    last = last_path(directory)
    return last.exists() or _previous(last).exists()


def find(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of the run in `directory`, and its content; None if there was never one.

    Raises:
        TrainingError: There are checkpoints, but none can be read.
    """
    last = last_path(directory)
    candidates = [path for path in (last, _previous(last)) if path.exists()]
    for path in candidates:
        try:
            return path, _read_verified(path)
        except _DAMAGE:
            logger.warning("%s is damaged and left aside", path)
    if candidates:
        raise TrainingError(
            f"every checkpoint in {last.parent} is damaged; start anew without resume (--resume), "
            "in another directory"
        )
    return None


def clear(directory: Path) -> None:
    """Remove the checkpoints of the run in `directory`."""
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)


def tidy(directory: Path, *, finished: bool = False) -> None:
    """Remove half-written files of a killed process, and `finished` also the previous checkpoint."""
    last = last_path(directory)
    for left in last.parent.glob(".*-tmp"):
        left.unlink(missing_ok=True)
    if finished:
        _previous(last).unlink(missing_ok=True)


def _previous(last: Path) -> Path:
    return last.with_name("previous.ckpt")


def _read_verified(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"checksum of {bad}")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    RunState.take_from(checkpoint)
    return checkpoint


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
