"""ONNX Runtime over an exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.runtimes.base import Runtime, cores
from phiscale.deploy.runtimes.messages import first_line
from phiscale.errors import ModelDirError, require

__all__ = ["OnnxRuntime"]


class OnnxRuntime:
    """A graph with its preprocessing inside, on ONNX Runtime. Any number of threads may call it at once.

    Args:
        path: The ``.onnx`` file.
        threads: Threads of one run; None takes one per core that this process may use.

    Raises:
        ModelDirError: The file is damaged.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        ort = require("onnxruntime", extra="deploy")
        self._path = path
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or cores()
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
        except Exception as error:  # ONNX Runtime's own exceptions share no base
            raise ModelDirError(f"cannot open {path}: {first_line(error)}; export again") from None

    def for_throughput(self) -> Runtime:
        """The same graph with one thread per run; measured faster than all of them on each run in turn."""
        return OnnxRuntime(self._path, threads=1)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify images (N, H, W, C). Returns probabilities (N, K)."""
        result: NDArray[np.float32] = self._session.run(None, {self._input: images})[0]
        return result
