"""How a network is run when it is timed: engine, precision, threads and batch."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from typing import Literal, get_args

from phiscale.deploy.runtimes.base import cores
from phiscale.errors import MissingDependencyError, ModelDirError

__all__ = ["PRECISIONS", "Engine", "Setting", "default_engine"]

Engine = Literal["openvino", "onnx", "torch"]
PRECISIONS = {"openvino": ("fp32", "bf16", "int8"), "onnx": ("fp32",), "torch": ("fp32",)}
PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime", "torch": "torch"}


def default_engine() -> Engine:
    """The first engine that is installed, in the order of their speed on processors."""
    engines: tuple[Engine, ...] = get_args(Engine)
    for engine in engines:
        if _version(engine) is not None:
            return engine
    return "torch"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a network is run.

    Attributes:
        runtime: The engine: ``"openvino"``, ``"onnx"`` or ``"torch"``.
        precision: What it computes in: ``"fp32"``, ``"bf16"`` or ``"int8"``.
        threads: Threads of one run.
        batch_size: Images in one run.

    Raises:
        ModelDirError: There is no such engine, it does not compute in this precision, or a number is not
            positive.
        MissingDependencyError: The engine is not installed.
    """

    runtime: Engine = field(default_factory=default_engine)
    precision: str = "fp32"
    threads: int = field(default_factory=cores)
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.runtime not in PRECISIONS:
            raise ModelDirError(f"no runtime is named {self.runtime!r}; there are: {', '.join(PRECISIONS)}")
        if self.precision not in PRECISIONS[self.runtime]:
            known = " or ".join(PRECISIONS[self.runtime])
            raise ModelDirError(f"{self.runtime} is timed in {known}, not in {self.precision}")
        for name in ("threads", "batch_size"):
            if getattr(self, name) < 1:
                raise ModelDirError(f"{name} must be at least 1, got {getattr(self, name)}")
        if _version(self.runtime) is None:
            raise MissingDependencyError(
                f"{PACKAGES[self.runtime]} is not installed; run: pip install 'phiscale[deploy]'"
            )

    @property
    def engine(self) -> str:
        """Name and version of the engine's package."""
        return f"{PACKAGES[self.runtime]} {_version(self.runtime)}"

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        batch = "1 image" if self.batch_size == 1 else f"{self.batch_size} images"
        return f"{self.engine}, {self.precision}, {threads}, {batch} at a time"


def _version(engine: Engine) -> str | None:
    try:
        return importlib.metadata.version(PACKAGES[engine])
    except importlib.metadata.PackageNotFoundError:
        return None
