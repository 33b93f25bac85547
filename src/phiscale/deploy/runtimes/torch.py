"""PyTorch as it comes: the runtime that is always there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from phiscale.data.transforms import normalize
from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess

__all__ = ["TorchRuntime"]


class TorchRuntime:
    """A network in eval mode, channels last.

    Args:
        network: With its weights; put into eval mode, and on the device.
        preprocess: Has the mean and std that images are normalised with.
        device: Where to run.

    Attributes:
        network: The network that runs.
    """

    def __init__(
        self, network: Network, preprocess: Preprocess, *, device: str | torch.device = "cpu"
    ) -> None:
        self._device = torch.device(device)
        self._preprocess = preprocess
        # The convolution kernels of CPUs and GPUs prefer channels last, and the images arrive so anyway.
        self.network = network.eval().to(self._device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify images (N, H, W, C). Returns probabilities (N, K)."""
        batch = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)
        logits = self.network(normalize(batch, self._preprocess))
        return logits.float().softmax(dim=1).cpu().numpy()  # type: ignore[no-any-return]
