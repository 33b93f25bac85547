"""Something that answers images: a library, an engine and a precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["OURS", "Contender", "centred_logits"]

OURS = "phiscale"
# Below it a probability says nothing in float32.
SMALLEST = 1e-30


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One line of a table.

    Attributes:
        name: What the line says.
        library: Whose network it is, or whose export.
        engine: ``"PyTorch"``, ``"ONNX Runtime"`` or ``"OpenVINO"``.
        precision: ``"fp32"``, ``"bf16"`` or ``"int8"``.
        padding: ``"symmetric"`` or ``"same"``; it decides which reference the answers are compared with.
        prepare: uint8 images (N, H, W, 3) -> what `run` takes; not timed.
        run: What is timed.
        probabilities: Whether `run` returns probabilities; logits otherwise.
    """

    name: str
    library: str
    engine: str
    precision: str
    padding: str
    prepare: Callable[[NDArray[np.uint8]], Any]
    run: Callable[[Any], NDArray[np.float32]]
    probabilities: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether this project made it."""
        return self.library == OURS

    def answers(self, images: NDArray[np.uint8], batch: int) -> NDArray[np.float64]:
        """Centred logits (N, K) of images (N, H, W, 3), N a multiple of `batch`."""
        outputs = [
            self.run(self.prepare(images[start : start + batch])) for start in range(0, len(images), batch)
        ]
        return centred_logits(np.concatenate(outputs), probabilities=self.probabilities)


def centred_logits(outputs: NDArray[np.float32], *, probabilities: bool) -> NDArray[np.float64]:
    """Logits without their mean, which softmax does not keep, so that both kinds of output compare.

    Args:
        outputs: (N, K).
        probabilities: Whether they are probabilities, and not logits.

    Examples:
        >>> import numpy as np
        >>> logits = np.array([[1.0, 2.0, 6.0]], np.float32)
        >>> softmax = np.exp(logits) / np.exp(logits).sum()
        >>> np.allclose(centred_logits(softmax, probabilities=True), [[-2.0, -1.0, 3.0]])
        True
    """
    values = outputs.astype(np.float64)
    if probabilities:
        values = np.log(np.maximum(values, SMALLEST))
    centred: NDArray[np.float64] = values - values.mean(axis=1, keepdims=True)
    return centred
