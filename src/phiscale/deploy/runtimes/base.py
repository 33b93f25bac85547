"""What every runtime can do, and how one is chosen."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.export_store import Export, list_exports
from phiscale.errors import MissingDependencyError, ModelDirError, PhiscaleError
from phiscale.weights.config import ModelDir

if TYPE_CHECKING:
    from phiscale.nn.network import Network

__all__ = ["RUNTIMES", "Runtime", "open_export", "open_runtime"]

logger = logging.getLogger("phiscale.deploy")

RUNTIMES = ("auto", "torch", "openvino", "onnx")


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


def open_runtime(model: ModelDir, name: str = "auto", *, network: Network | None = None) -> Runtime:
    """Load the weights of a model into a runtime.

    Args:
        model: From `phiscale.weights.model_dir.read_config`, or `phiscale.deploy.pretrained.open_pretrained`.
        name: One of `RUNTIMES`; ``"auto"`` takes the fastest that the directory has a model for.
        network: The network, where it is in memory already; None reads it from the directory.

    Raises:
        ModelDirError: No such runtime, no classifier, or the weights cannot be used.
    """
    if name not in RUNTIMES:
        raise ModelDirError(f"no runtime is named {name!r}; there are: {', '.join(RUNTIMES)}")
    if not model.classes:
        raise ModelDirError(f"{model.path} has no classifier (num_classes is 0); train one before predicting")
    if network is None and name != "torch":
        exported = _exported(model, name)
        if exported is not None:
            return exported
    from phiscale.deploy.runtimes.torch import TorchRuntime
    from phiscale.weights.model_dir import load_network

    return TorchRuntime(load_network(model) if network is None else network, model.preprocess)


def _exported(model: ModelDir, name: str) -> Runtime | None:
    """The fastest export that can be opened; None where none is faster than PyTorch was.

    Raises:
        ModelDirError: `name` is a runtime, and the model has no export for it that opens.
        MissingDependencyError: `name` is a runtime, and it is not installed.
    """
    problem: PhiscaleError | None = None
    for export in list_exports(model):
        if name == "auto" and not export.is_faster_than_eager:
            continue
        if name in ("auto", export.format):
            try:
                return open_export(export)
            except (ModelDirError, MissingDependencyError) as error:
                problem = problem or error
    if name == "auto":
        if problem is not None:
            logger.warning("an export is left aside: %s", problem)
        return None
    raise problem or ModelDirError(
        f"{model.path} has no export for {name} of its present weights; "
        f"run: phiscale export {model.path} {name}"
    )


def open_export(export: Export) -> Runtime:
    """Open an export in the engine that it is for.

    Raises:
        ModelDirError: It is damaged.
        MissingDependencyError: The engine is not installed.
    """
    from phiscale.deploy.exporters.toolchain import get_toolchain

    return get_toolchain(export.format).open(export)
