"""LiteRT over an exported model, with XNNPACK's kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.runtimes.base import cores
from phiscale.deploy.runtimes.messages import first_line
from phiscale.errors import ModelDirError, require

__all__ = ["LiteRtRuntime"]


class LiteRtRuntime:
    """A model with its preprocessing inside, on LiteRT; one image at a time.

    Args:
        path: The ``.tflite`` file.
        threads: Threads of one run; None takes one per core that this process may use.

    Raises:
        ModelDirError: The file is damaged.
        MissingDependencyError: ai-edge-litert is not installed.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        interpreter = require("ai_edge_litert.interpreter", extra="litert")
        try:
            self._interpreter = interpreter.Interpreter(str(path), num_threads=threads or cores())
            self._interpreter.allocate_tensors()
            (self._input,) = (tensor["index"] for tensor in self._interpreter.get_input_details())
            (self._output,) = (tensor["index"] for tensor in self._interpreter.get_output_details())
        except (ValueError, RuntimeError) as error:
            raise ModelDirError(f"cannot open {path}: {first_line(error)}; export again") from None

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify images (N, H, W, C). Returns probabilities (N, K)."""
        return np.concatenate([self._classify(image[None]) for image in images])

    def _classify(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._interpreter.set_tensor(self._input, image)
        self._interpreter.invoke()
        probabilities: NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        return probabilities
