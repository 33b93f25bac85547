"""What a search asks for, one training, and what comes back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

from phiscale.spec import NetworkSpec

__all__ = ["Objective", "Report", "Score", "Trial"]

Report = Callable[[int, float], bool]
"""Takes the number of an epoch, from 1, and its top-1; returns whether to stop there."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one training gave.

    Attributes:
        top1: Share of the validation images classified right, in [0, 1].
        epochs: Epochs that were trained.
        train_seconds: Time of the epochs, in seconds.
        latency_ms: Measured time of one inference in milliseconds, where it was asked for.
    """

    top1: float
    epochs: int
    train_seconds: float
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        if not (0.0 <= self.top1 <= 1.0):  # also where it is no number
            raise ValueError(f"top1 must lie in [0, 1], got {self.top1!r}")
        if not math.isfinite(self.train_seconds):
            raise ValueError(f"train_seconds must be finite, got {self.train_seconds!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Score:
        """Inverse of `to_dict`."""
        return cls(**data)


class Objective(Protocol):
    """Trains a network and says how good it became.

    With equal arguments it gives an equal `top1`, wherever it runs. To run in other processes it must be
    something that can be pickled: an object of a class, or a function of a module.
    """

    def __call__(
        self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        """Train once.

        Args:
            spec: The network.
            seed: Decides everything random.
            epochs: How long; None is the recipe's own number.
            report: Told after each epoch; training stops where it answers True.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training to be done. Equal trials are trained once.

    Attributes:
        spec: The network.
        seed: Seed of the training.
        epochs: How long; None is the recipe's own number.
    """

    spec: NetworkSpec
    seed: int
    epochs: int | None = None

    @cached_property
    def key(self) -> str:
        """What decides the result, as 64 hexadecimal digits; what the network is called does not count."""
        spec = {name: value for name, value in self.spec.to_dict().items() if name != "name"}
        asked = {"spec": spec, "seed": self.seed, "epochs": self.epochs}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
