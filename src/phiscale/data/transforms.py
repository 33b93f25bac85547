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

from phiscale.data.decode import decode
from phiscale.errors import ShapeError
from phiscale.preprocess import Preprocess

__all__ = ["EvalTransform", "ImageTransform", "Normalize", "fit_size", "normalize", "to_tensor"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# A 1×5000 image resized to cover 256×256 would be 256×1.28 million pixels. Above this many pixels, only
# the part that the crop keeps is computed; it can differ by rounding from the whole image's resize.
_MAX_RESIZED_PIXELS = 2**25


class ImageTransform(Protocol):
    """What turns an image into a uint8 tensor: `EvalTransform` or `TrainTransform`."""

    @property
    def preprocess(self) -> Preprocess:
        """The contract that the result keeps."""
        ...

    def __call__(self, image: Image.Image, *, seed: int | None = None) -> Tensor:
        """image: any mode. Returns uint8 (channels, height, width)."""
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


def fit_size(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Bring a decoded image to the size of a `Preprocess`, in the way that it says.

    Args:
        image: Mode RGB or L.
        preprocess: Size, resize mode and interpolation.

    Returns:
        An image of exactly `preprocess.size`.
    """
    height, width = preprocess.size
    resample = _RESAMPLING[preprocess.interpolation]
    if preprocess.resize == "crop":
        return _resize_and_crop(image, preprocess)
    if preprocess.resize == "squash":
        return _resize(image, (width, height), resample)
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (1, 1), _colour(preprocess)).convert(image.mode).resize((width, height))
    canvas.paste(_resize(image, inner, resample), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _resize_and_crop(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    height, width = preprocess.size
    cover_height, cover_width = preprocess.resize_size
    # The side that is relatively shorter gets its exact size; the other is rounded down, like torchvision.
    if cover_height * image.width >= cover_width * image.height:
        resized = (cover_height * image.width // image.height, cover_height)
    else:
        resized = (cover_width, cover_width * image.height // image.width)
    # round() takes halves to the even number, and so does torchvision.
    left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    resample = _RESAMPLING[preprocess.interpolation]
    if resized[0] * resized[1] > _MAX_RESIZED_PIXELS:
        x, y = image.width / resized[0], image.height / resized[1]
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return image.resize((width, height), resample, box=box)
    image = _resize(image, resized, resample)
    return image if resized == (width, height) else image.crop((left, top, left + width, top + height))


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resample)


def _colour(preprocess: Preprocess) -> tuple[int, int, int]:
    red, green, blue = preprocess.background
    return round(red), round(green), round(blue)


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
    return _normalize(batch, torch.tensor(preprocess.mean), torch.tensor(preprocess.std))


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
    if batch.ndim != 4 or batch.shape[1] != len(mean):
        raise ShapeError(f"expected a batch (N, {len(mean)}, height, width), got {tuple(batch.shape)}")
    mean = mean.to(device=batch.device, dtype=torch.float32).view(1, -1, 1, 1)
    std = std.to(device=batch.device, dtype=torch.float32).view(1, -1, 1, 1)
    return (batch.to(torch.float32) / 255 - mean) / std
