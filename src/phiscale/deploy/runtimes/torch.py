"""PyTorch as it comes: the runtime that is always there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from phiscale.data.transforms import normalize
from phiscale.weights.config import ModelDir
from phiscale.weights.model_dir import load_network

__all__ = ["TorchRuntime"]


class TorchRuntime:
    """The network of a model directory in eval mode, channels last.

    Args:
        model: From `phiscale.weights.model_dir.read_config`.
        device: Where to run.

    Raises:
        ModelDirError: The weights cannot be read or do not fit.
    """

    def __init__(self, model: ModelDir, *, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        self._preprocess = model.preprocess
        # The convolution kernels of CPUs and GPUs prefer channels last, and the images arrive so anyway.
        self._network = load_network(model, device=self._device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify images (N, H, W, C). Returns probabilities (N, K)."""
        batch = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)
        logits = self._network(normalize(batch, self._preprocess))
        return logits.float().softmax(dim=1).cpu().numpy()  # type: ignore[no-any-return]
