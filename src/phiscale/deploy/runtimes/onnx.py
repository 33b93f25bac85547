"""ONNX Runtime over an exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phiscale.errors import ModelDirError, require

__all__ = ["OnnxRuntime"]


class OnnxRuntime:
    """A graph with its preprocessing inside, on ONNX Runtime.

    Args:
        path: The ``.onnx`` file.
        threads: Threads of one run; None lets the runtime choose.

    Raises:
        ModelDirError: The file is damaged.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        ort = require("onnxruntime", extra="deploy")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
        except Exception as error:  # ONNX Runtime's own exceptions share no base
            raise ModelDirError(f"cannot open {path}: {_line(error)}; export again") from None

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify images (N, H, W, C). Returns probabilities (N, K)."""
        result: NDArray[np.float32] = self._session.run(None, {self._input: images})[0]
        return result


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
