"""What a lower precision costs: its answers beside those of fp32, on images with labels where there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.export_store import Loss
from phiscale.deploy.runtimes.messages import first_line
from phiscale.deploy.samples import Images
from phiscale.errors import ModelDirError, PhiscaleError

if TYPE_CHECKING:
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["BATCH", "Gate", "answers"]

BATCH = 16


class Gate:
    """Measures runtimes beside one that computes in fp32.

    Args:
        images: What to measure on.
        reference: The network in fp32; asked once.
        batch: Images per run.
    """

    def __init__(self, images: Images, reference: Runtime, *, batch: int = BATCH) -> None:
        self._images = images
        self._batch = batch
        self._expected = answers(reference, images.pixels, batch=batch)

    def measure(self, runtime: Runtime) -> Loss:
        """What the answers of a runtime cost.

        Raises:
            ModelDirError: The runtime fails, or gives NaN.
        """
        images, views = self._images, self._images.views
        found = answers(runtime, images.pixels, batch=self._batch)
        best, wanted = found.argmax(1), self._expected.argmax(1)
        # 1 for an answer that is lost, -1 for one that is gained.
        lost = (best != wanted).astype(int)
        if images.labels is not None:
            lost = (wanted == images.labels).astype(int) - (best == images.labels).astype(int)
        as_they_are = lost[: len(lost) // views]
        return Loss(
            measure="agreement" if images.labels is None else "accuracy",
            # From counts: a difference of two rounded shares can come out above a limit that it equals.
            drop=max(float(100 * part.sum() / len(part)) for part in (as_they_are, lost)),
            top1=None if images.labels is None else float((best == images.labels).mean()),
            agreement=float((best == wanted).mean()),
            mean_difference=float(np.abs(found - self._expected).mean()),
            images=len(as_they_are),
            views=views,
            source=images.source,
        )


def answers(runtime: Runtime, pixels: NDArray[np.uint8], *, batch: int = BATCH) -> NDArray[np.float32]:
    """Probabilities (N, K) for images (N, H, W, C), some at a time.

    Raises:
        ModelDirError: The engine fails, or gives NaN.
    """
    try:
        found = [runtime(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
    except PhiscaleError:
        raise
    except Exception as error:  # the exceptions of engines share no base
        raise ModelDirError(f"the engine failed while the export was checked: {first_line(error)}") from None
    result = np.concatenate(found)
    if not np.isfinite(result).all():
        raise ModelDirError("the network gives NaN; its weights are broken, or this precision is too low")
    return result
