"""OpenVINO over an exported graph: the fastest on CPUs that was measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from phiscale.errors import ModelDirError, require

__all__ = ["Hint", "OpenVinoRuntime"]

Hint = Literal["latency", "throughput"]


class OpenVinoRuntime:
    """A graph with its preprocessing inside, on OpenVINO.

    Args:
        path: The ``.xml`` file.
        precision: What floating-point operations are computed in: ``"fp32"`` or ``"bf16"``. Left to itself,
            OpenVINO takes bfloat16 where the processor has it, and answers differ from the network's.
        threads: Threads of one run; None takes one per core that this process may use.
        hint: ``"latency"`` for one image at a time, ``"throughput"`` for many.

    Raises:
        ModelDirError: The file is damaged.
        MissingDependencyError: openvino is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        hint: Hint = "latency",
    ) -> None:
        ov = require("openvino", extra="deploy")
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": hint.upper(),
            "INFERENCE_NUM_THREADS": threads or _cores(),
        }
        try:
            core = ov.Core()
            self._compiled = core.compile_model(core.read_model(path), "CPU", config)
        except RuntimeError as error:
            raise ModelDirError(f"cannot open {path}: {_line(error)}; export again") from None
        self._request = self._compiled.create_infer_request()

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify images (N, H, W, C). Returns probabilities (N, K)."""
        self._request.infer([images], share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data, np.float32)


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _cores() -> int:
    """Cores that this process may use, which on a shared machine are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
