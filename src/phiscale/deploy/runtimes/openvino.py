"""OpenVINO over an exported graph: the fastest on CPUs that was measured."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.runtimes.base import Runtime, cores
from phiscale.deploy.runtimes.messages import last_line
from phiscale.errors import ModelDirError, require

__all__ = ["Hint", "OpenVinoRuntime"]

Hint = Literal["latency", "throughput"]


class OpenVinoRuntime:
    """A graph with its preprocessing inside, on OpenVINO. Any number of threads may call it at once.

    Args:
        path: The ``.xml`` file, or that file packed by gzip; the ``.bin`` lies beside it.
        precision: What floating-point operations are computed in: ``"fp32"`` or ``"bf16"``. Left to itself,
            OpenVINO takes bfloat16 where the processor has it, and answers differ from the network's.
        threads: Threads in all; None takes one per core that this process may use.
        hint: ``"latency"`` for one image at a time, which all threads work on; ``"throughput"`` for as many
            calls at once as there are threads, each on one of them.

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
        self._path, self._precision, self._threads = path, precision, threads or cores()
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": hint.upper(),
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": self._threads if hint == "throughput" else 1,
        }
        try:
            core = ov.Core()
            self._compiled = core.compile_model(_read(core, path), "CPU", config)
        except (RuntimeError, OSError, EOFError, zlib.error) as error:  # the last three say gzip's troubles
            raise ModelDirError(f"cannot open {path}: {last_line(error)}; export again") from None
        # OpenVINO asks numpy for its types at the first call, once for all threads. Two first calls at once
        # can wait for each other for ever: one holds Python's lock, the other that of the question.
        self._compiled.input(0).get_element_type().to_dtype()
        # A request serves one call at a time, and making one takes longer than using it: they are kept.
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def for_throughput(self) -> Runtime:
        """The same graph with one stream per thread."""
        return OpenVinoRuntime(
            self._path, precision=self._precision, threads=self._threads, hint="throughput"
        )

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify images (N, H, W, C). Returns probabilities (N, K)."""
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        request.infer([images], share_inputs=True)
        result = np.array(request.get_output_tensor(0).data, np.float32)
        self._idle.put(request)  # not after an error: a request that failed is dropped
        return result


def _read(core: Any, path: Path) -> Any:
    """An ``openvino.Model`` from its text, packed or not, and the weights beside it."""
    if path.suffix != ".gz":
        return core.read_model(path)
    weights = path.with_suffix("").with_suffix(".bin")
    return core.read_model(gzip.decompress(path.read_bytes()), weights.read_bytes())
