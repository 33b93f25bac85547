"""int8 without a loss of accuracy: what costs too much is found by measuring, and left in floating point."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.export_store import Loss, Quantization
from phiscale.deploy.gate import Gate
from phiscale.deploy.samples import Images

if TYPE_CHECKING:
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["Progress", "Quantizer", "quantize"]

# Sensitivities need an order, not ranges for good: few images give it.
PROBE_CALIBRATION_IMAGES = 32
PROBE_IMAGES = 128

Progress = Callable[[str, int, int], None]


class Quantizer(Protocol):
    """A network of one toolchain, ready to be quantised as often as wanted."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions whose versions an export notes."""
        ...

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of layers that can be left in floating point."""
        ...

    def __call__(
        self,
        path: Path,
        images: NDArray[np.uint8],
        *,
        kept: tuple[str, ...] = (),
        on_image: Callable[[int], None] | None = None,
    ) -> None:
        """Write the network, quantised.

        Args:
            path: The file to write.
            images: (N, H, W, C), to measure the ranges of activations on.
            kept: Groups that stay in floating point.
            on_image: Called with the number of images seen so far.

        Raises:
            ModelDirError: The toolchain cannot quantise this network.
            OSError: The file cannot be written.
        """
        ...


@dataclass(frozen=True)
class _Attempt:
    folder: Path
    kept: tuple[str, ...]
    loss: Loss


def quantize(
    quantizer: Quantizer,
    file: Path,
    *,
    open_file: Callable[[Path], Runtime],
    calibration: Images,
    validation: Images,
    reference: Runtime,
    max_drop: float,
    progress: Progress | None = None,
) -> tuple[Quantization, Loss]:
    """Quantise as much of a network as loses no more than allowed.

    First everything is quantised. Where that loses too much, every group of layers is quantised alone, to
    see how far it moves the answers, and the 1, 2, 4, … most sensitive groups are left in floating point
    until the loss is small enough, up to half of them. Where it never is, the best attempt is kept.

    Args:
        quantizer: The network.
        file: Where the result goes; attempts are made in folders beside it, which are removed.
        open_file: Opens a quantised file in its engine.
        calibration: Images to measure ranges on.
        validation: Images to measure the loss on.
        reference: The network in fp32.
        max_drop: Loss allowed, in points, see `Loss.is_within`.
        progress: Called with what is being done, how much of it is done, and how much there is.

    Returns:
        How it was quantised, and what it loses; more than `max_drop` where nothing lost less.

    Raises:
        ModelDirError: The network cannot be quantised.
        OSError: A file cannot be written.
    """
    search = _Search(quantizer, file, open_file, calibration, Gate(validation, reference), progress)
    attempts = [search.attempt(())]
    sensitivities: Mapping[str, float] = {}
    if not attempts[0].loss.is_within(max_drop):
        sensitivities = search.sensitivities(Gate(validation.some(PROBE_IMAGES), reference))
        order = sorted(sensitivities, key=lambda group: -sensitivities[group])
        count = 1
        # With more than half of it in floating point, it would be no int8 network.
        while not attempts[-1].loss.is_within(max_drop) and count <= len(order) / 2:
            attempts.append(search.attempt(tuple(order[:count])))
            count *= 2
    best = min(attempts, key=lambda attempt: (attempt.loss.drop, attempt.loss.mean_difference))
    for path in best.folder.iterdir():
        path.replace(file.parent / path.name)
    for attempt in attempts:
        shutil.rmtree(attempt.folder, ignore_errors=True)
    result = Quantization(
        kept=best.kept,
        sensitivities=sensitivities,
        tried=tuple((len(attempt.kept), attempt.loss.drop) for attempt in attempts),
        images=len(calibration),
        source=calibration.source,
    )
    return result, best.loss


@dataclass(frozen=True)
class _Search:
    quantizer: Quantizer
    file: Path
    open_file: Callable[[Path], Runtime]
    calibration: Images
    gate: Gate
    progress: Progress | None

    def attempt(self, kept: tuple[str, ...]) -> _Attempt:
        """Quantise all but some groups, and measure what that loses."""
        label = f"quantising all but {len(kept)} group{'s' * (len(kept) > 1)}" if kept else "quantising"
        folder = self.file.parent / f"attempt-{len(kept)}"
        folder.mkdir()
        path, total = folder / self.file.name, len(self.calibration)
        self._tell(label, 0, total)
        self.quantizer(
            path,
            self.calibration.pixels,
            kept=kept,
            on_image=lambda seen: self._tell(label, min(seen, total), total),
        )
        self._tell("measuring what that loses", 0, 1)
        return _Attempt(folder=folder, kept=kept, loss=self.gate.measure(self.open_file(path)))

    def sensitivities(self, gate: Gate) -> dict[str, float]:
        """Mean difference of a probability with one group in int8 and all others in floating point."""
        groups = self.quantizer.groups
        few = self.calibration.some(PROBE_CALIBRATION_IMAGES).pixels
        folder = self.file.parent / "probe"
        result = {}
        for done, group in enumerate(groups):
            self._tell("finding sensitive layers", done, len(groups))
            folder.mkdir()
            path = folder / self.file.name
            self.quantizer(path, few, kept=tuple(other for other in groups if other != group))
            result[group] = gate.measure(self.open_file(path)).mean_difference
            shutil.rmtree(folder)
        return result

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)
