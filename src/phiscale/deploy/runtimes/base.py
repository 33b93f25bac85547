"""What every runtime can do, and how one is chosen."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.export_store import Export, Format, list_exports
from phiscale.deploy.runtimes.chain import Candidate, RuntimeChain
from phiscale.errors import ModelDirError
from phiscale.weights.config import ModelDir

if TYPE_CHECKING:
    from phiscale.nn.network import Network

__all__ = [
    "RUNTIMES",
    "ConcurrentRuntime",
    "Runtime",
    "cores",
    "open_chain",
    "open_export",
    "open_runtime",
]


def _runtime_name(format: str) -> str:  # noqa: A002
    # "torch" is PyTorch as it comes; what torch.export wrote runs in another way.
    return "inductor" if format == "torch" else format


RUNTIMES = ("auto", "torch", *map(_runtime_name, get_args(Format)))


class Runtime(Protocol):
    """A network that takes decoded images as they are; normalisation is its own affair."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            images: (N, H, W, C), prepared by the model's preprocessing up to normalisation.

        Returns:
            Probabilities (N, K); every row sums to 1.
        """
        ...


class ConcurrentRuntime(Runtime, Protocol):
    """A runtime that several threads may call at once."""

    def for_throughput(self) -> Runtime:
        """The same network, set up for as many calls at a time as there are cores."""
        ...


def cores() -> int:
    """Cores that this process may use, which on a shared machine are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_runtime(model: ModelDir, name: str = "auto", *, network: Network | None = None) -> Runtime:
    """Load the weights of a model into a runtime; arguments and errors as of `open_chain`."""
    return open_chain(model, name, network=network).runtime


def open_chain(model: ModelDir, name: str = "auto", *, network: Network | None = None) -> RuntimeChain:
    """Load the weights of a model into a runtime, with others at hand in case that it dies.

    Args:
        model: From `phiscale.weights.model_dir.read_config`, or `phiscale.deploy.pretrained.open_pretrained`.
        name: One of `RUNTIMES`, or the name of an export, such as ``"openvino-bf16"``; ``"auto"`` takes the
            fastest that the directory has a model for.
        network: The network, where it is in memory already; None reads it from the directory.

    Raises:
        ModelDirError: No such runtime, no classifier, or the weights cannot be used.
        MissingDependencyError: `name` is a runtime, and it is not installed.
    """
    if not model.classes:
        raise ModelDirError(f"{model.path} has no classifier (num_classes is 0); train one before predicting")
    torch = Candidate(name="torch", open=partial(_open_torch, model, network))
    exports = _matching(model, name)
    if network is not None and name not in ("auto", "torch"):
        raise ModelDirError(
            f"{model.path} has no exports; save it as a model directory and export that to run it on {name}"
        )
    if network is not None or name == "torch":
        return RuntimeChain([torch], path=model.path)
    candidates = [Candidate(name=export.path.name, open=partial(open_export, export)) for export in exports]
    if name == "auto":
        return RuntimeChain([*candidates, torch], path=model.path)
    if not candidates:
        raise ModelDirError(
            f"{model.path} has no export for {name} of its present weights; "
            f"run: phiscale export {model.path} {_export_command(name)}"
        )
    return RuntimeChain(candidates, fallback=torch, path=model.path)


def open_export(export: Export) -> Runtime:
    """Open an export in the engine that it is for.

    Raises:
        ModelDirError: It is damaged.
        MissingDependencyError: The engine is not installed.
    """
    from phiscale.deploy.exporters.toolchain import get_toolchain

    export.verify()
    return get_toolchain(export.format).open(export)


def _open_torch(model: ModelDir, network: Network | None) -> Runtime:
    from phiscale.deploy.runtimes.torch import TorchRuntime
    from phiscale.weights.model_dir import load_network

    return TorchRuntime(load_network(model) if network is None else network, model.preprocess)


def _matching(model: ModelDir, name: str) -> list[Export]:
    """The exports that a name means, the fastest first.

    Raises:
        ModelDirError: There is no such runtime.
    """
    if name not in RUNTIMES and name.partition("-")[0] not in get_args(Format):
        raise ModelDirError(
            f"no runtime is named {name!r}; there are: {', '.join(RUNTIMES)}, and a model's exports by name"
        )
    if name == "torch":
        return []
    exports = list_exports(model)
    if name == "auto":
        return [export for export in exports if export.is_faster_than_eager]
    return [export for export in exports if name in (_runtime_name(export.format), export.path.name)]


def _export_command(name: str) -> str:
    """What `phiscale export` is told to make a runtime's file, such as ``openvino --precision int8``."""
    kind, _, precision = name.partition("-")
    formats: dict[str, str] = {_runtime_name(known): known for known in get_args(Format)}
    return formats.get(name, kind) + (f" --precision {precision}" if precision else "")
