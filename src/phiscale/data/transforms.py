"""A `Preprocess` carried out: image → uint8 tensor, and batches of those → the network's input.

The work is split in two because bytes are a quarter of floats: workers hand over uint8, and `normalize`
runs on the whole batch, on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from phiscale.data.decode import ImageInput, decode
from phiscale.data.sizes import fit_size
from phiscale.errors import ShapeError
from phiscale.preprocess import Preprocess

__all__ = ["EvalTransform", "ImageTransform", "Normalize", "normalize", "to_tensor"]


class ImageTransform(Protocol):
    """What turns an image into a uint8 tensor: `EvalTransform` or `TrainTransform`."""

    @property
    def preprocess(self) -> Preprocess:
        """The contract that the result keeps."""
        ...

    def __call__(self, image: Image.Image, *, seed: int | None = None) -> Tensor:
        """image: any mode. Returns uint8 (channels, height, width)."""
        ...

    def from_file(self, file: ImageInput, *, seed: int | None = None) -> Tensor | None:
        """The same for a file where there is a faster way than to decode all of it, else None."""
        ...


@dataclass(frozen=True)
class EvalTransform:
    """The transform of evaluation and prediction: the same result every time.

    With the authors' setting (bicubic, 224 of 256) it equals torchvision's ``Resize(256)`` and
    ``CenterCrop(224)`` on the Pillow image, pixel by pixel.

    Examples:
        >>> EvalTransform(Preprocess.for_size(32))(Image.new("RGB", (50, 40))).shape
        torch.Size([3, 32, 32])
    """

    preprocess: Preprocess

    def __call__(self, image: Image.Image, *, seed: int | None = None) -> Tensor:
        """Decode, resize, and cut or pad.

        Args:
            image: Of any mode; EXIF rotation and transparency are taken care of.
            seed: Ignored; there is nothing random here.

        Returns:
            uint8 (channels, height, width) of `preprocess`.

        Raises:
            ImageError: The image cannot be decoded.
        """
        preprocess = self.preprocess
        image = decode(image, background=preprocess.background, channels=preprocess.channels)
        return to_tensor(np.asarray(fit_size(image, preprocess)))

    def from_file(self, file: ImageInput, *, seed: int | None = None) -> None:
        """None: what is measured is decoded whole."""


def to_tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Pixels (height, width) or (height, width, channels) as uint8 (channels, height, width), copied."""
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, order="C"))


def normalize(batch: Tensor, preprocess: Preprocess) -> Tensor:
    """Bytes to the network's input: (x / 255 − mean) / std, per channel.

    Args:
        batch: (N, channels, height, width), uint8.
        preprocess: Mean and std; the height and width are free.

    Returns:
        float32 of the same shape, on the same device.

    Raises:
        ShapeError: The batch has another rank or number of channels.
    """
    mean, std = _constants(batch, torch.tensor(preprocess.mean), torch.tensor(preprocess.std))
    # As `_normalize`, in place: each new batch of floats would cost as much time as the arithmetic.
    return batch.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)


class Normalize(nn.Module):
    """`normalize` as a module, to be a part of an exported graph.

    Its constants are not in the state dict: they belong to the `Preprocess`, not to the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocess, name)), persistent=False)

    def forward(self, batch: Tensor) -> Tensor:
        """batch: (N, channels, H, W), uint8. Returns float32 (N, channels, H, W)."""
        return _normalize(batch, self.mean, self.std)


def _normalize(batch: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    mean, std = _constants(batch, mean, std)
    return (batch.to(torch.float32) / 255 - mean) / std


def _constants(batch: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std on the batch's device, in the shape that they are taken in; and a check of the batch."""
    if batch.ndim != 4 or batch.shape[1] != len(mean):
        raise ShapeError(f"expected a batch (N, {len(mean)}, height, width), got {tuple(batch.shape)}")
    mean = mean.to(device=batch.device, dtype=torch.float32).view(1, -1, 1, 1)
    std = std.to(device=batch.device, dtype=torch.float32).view(1, -1, 1, 1)
    return mean, std
