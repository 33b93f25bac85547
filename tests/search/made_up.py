"""Objectives that train nothing, so small that a search takes a moment, for processes that may be killed."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from phiscale.search.objective import Report, Score, Trial
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

SMALL = NetworkSpec(
    name="small",
    stem=StemSpec(out_channels=16, stride=1),
    stages=(
        StageSpec(block="mbconv", out_channels=16, se_ratio=0.25),
        StageSpec(
            block="mbconv",
            out_channels=24,
            stride=2,
            expand_ratio=4,
            num_layers=2,
            se_ratio=0.25,
            kernel_size=5,
        ),
        StageSpec(block="mbconv", out_channels=40, stride=2, expand_ratio=4, num_layers=2, se_ratio=0.25),
    ),
    head=HeadSpec(out_channels=160),
    image_size=(28, 28),
    in_channels=1,
    num_classes=10,
)


def noise(spec: NetworkSpec, seed: int, epochs: int | None) -> float:
    """A number in [-1, 1] that only a real seed would explain."""
    digest = hashlib.sha256(Trial(spec=spec, seed=seed, epochs=epochs).key.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**31 - 1


@dataclass(frozen=True)
class Hill:
    """The nearer a network is to the best one, the better; more epochs help all, seeds shake a little."""

    best: NetworkSpec
    spread: float = 0.002

    def __call__(
        self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        distance = sum(
            abs(own / other - 1)
            for own, other in (
                (spec.num_blocks, self.best.num_blocks),
                (spec.num_features, self.best.num_features),
                (spec.image_size[0], self.best.image_size[0]),
            )
        )
        trained = epochs or 10
        top1 = 0.9 - 0.2 * distance - 0.1 / trained + self.spread * noise(spec, seed, epochs)
        return Score(top1=max(0.0, min(1.0, top1)), epochs=trained, train_seconds=0.1)


@dataclass(frozen=True)
class Slow:
    """A hill that takes its time, and writes a line to a file before it begins."""

    hill: Hill
    log: Path
    seconds: float = 0.0

    def __call__(
        self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        key = Trial(spec=spec, seed=seed, epochs=epochs).key
        with self.log.open("a") as file:
            file.write(f"{key} {os.getpid()}\n")
        time.sleep(self.seconds)
        return self.hill(spec, seed=seed, epochs=epochs)


@dataclass(frozen=True)
class Deadly:
    """Kills its own process with some seeds, until a file says that it did so often enough."""

    hill: Hill
    folder: Path
    seed: int
    deaths: int

    def __call__(
        self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        died = len(list(self.folder.iterdir()))
        if seed == self.seed and died < self.deaths:
            (self.folder / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.hill(spec, seed=seed, epochs=epochs)


class OneFails:
    """Raises for seed 1."""

    def __call__(
        self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        if seed == 1:
            raise ArithmeticError("the loss became nan")
        return Hill(spec)(spec, seed=seed, epochs=epochs)
