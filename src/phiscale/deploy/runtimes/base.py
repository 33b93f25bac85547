"""What every runtime can do, and how one is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from phiscale.errors import ModelDirError
from phiscale.weights.config import ModelDir

if TYPE_CHECKING:
    from phiscale.nn.network import Network

__all__ = ["RUNTIMES", "Runtime", "open_runtime"]

RUNTIMES = ("auto", "torch")


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
    from phiscale.deploy.runtimes.torch import TorchRuntime
    from phiscale.weights.model_dir import load_network

    return TorchRuntime(load_network(model) if network is None else network, model.preprocess)
