"""The preprocessing contract: how an image file becomes the network's input.

A `Preprocess` is stored with every model and export, so that evaluation and prediction do exactly
what training did. It is a value; `phiscale.data.transforms` carries it out.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from phiscale.errors import SpecError
from phiscale.spec import as_size

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Interpolation", "Preprocess", "ResizeMode"]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
ResizeMode = Literal["crop", "squash", "pad"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes a tensor of shape (channels, height, width).

    EXIF rotation is applied, alpha is laid over `background`, colours become RGB (or grey), then:

    - ``"crop"``: the shorter side is resized to side / crop_fraction, the centre is cut out.
    - ``"squash"``: the whole image is resized to the size; its aspect ratio is lost.
    - ``"pad"``: the whole image is fitted inside, the rest is `background`.

    Last, values are divided by 255, and per channel `mean` is subtracted and divided by `std`.

    Attributes:
        size: (height, width) of the result in pixels.
        resize: One of the three ways above.
        crop_fraction: Share of the resized image's side that ``"crop"`` keeps, in (0, 1].
        interpolation: Filter of the resize; antialiased when shrinking, except ``"nearest"``.
        mean: Per channel, on the scale 0 to 1.
        std: Per channel, on the scale 0 to 1.
        background: Colour (R, G, B) from 0 to 255 under transparent pixels and padding.

    Raises:
        SpecError: A field has a value that cannot be carried out.

    Examples:
        >>> Preprocess.for_size(224).crop_fraction
        0.875
    """

    size: tuple[int, int] = (224, 224)
    resize: ResizeMode = "crop"
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_size(self.size, name="size"))
        for name in ("mean", "std", "background"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or not all(_is_number(v) for v in value):
                raise SpecError(f"{name} must be a list of finite numbers, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        for name, literal in (("resize", ResizeMode), ("interpolation", Interpolation)):
            choices = typing.get_args(literal)
            if getattr(self, name) not in choices:
                raise SpecError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if not _is_number(self.crop_fraction) or not 0 < self.crop_fraction <= 1:
            raise SpecError(f"crop_fraction must lie in (0, 1], got {self.crop_fraction!r}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise SpecError("mean and std must both have 1 value (grey) or 3 values (RGB)")
        if min(self.std) <= 0:
            raise SpecError(f"std must be positive, got {self.std!r}")
        if len(self.background) != 3 or any(
            not isinstance(value, int) or not 0 <= value <= 255 for value in self.background
        ):
            raise SpecError(f"background must be three integers from 0 to 255, got {self.background!r}")

    @property
    def channels(self) -> int:
        """Channels of the result: 1 (grey) or 3 (RGB)."""
        return len(self.mean)

    @property
    def resize_size(self) -> tuple[int, int]:
        """(height, width) that ``"crop"`` cuts its centre from, for an image of the same aspect."""
        return (round(self.size[0] / self.crop_fraction), round(self.size[1] / self.crop_fraction))

    @classmethod
    def for_size(cls, size: int | tuple[int, int], *, channels: int = 3) -> Preprocess:
        """The authors' evaluation preprocessing at a size: bicubic, a border of 16 px cut off.

        The authors' code keeps size / (size + 32) of the image (224 → 0.875). Below 96 px that would
        throw away most of the picture, so there the whole image is kept.

        Args:
            size: Side or (height, width) in pixels.
            channels: 3 for RGB with ImageNet's mean and std, 1 for grey with their average.

        Raises:
            SpecError: `channels` is neither 1 nor 3.
        """
        height, width = as_size(size, name="size")
        side = min(height, width)
        fraction = side / (side + 32) if side >= 96 else 1.0
        if channels == 3:
            return cls(size=(height, width), crop_fraction=fraction)
        if channels != 1:
            raise SpecError(
                f"images have 1 or 3 channels here, got {channels}; use your own loading for more"
            )
        mean, std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
        return cls(size=(height, width), crop_fraction=fraction, mean=(mean,), std=(std,))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocess:
        """Inverse of `to_dict`.

        Raises:
            SpecError: A field is unknown or has a value that cannot be carried out.
        """
        if not isinstance(data, Mapping):
            raise SpecError(f"preprocess must be an object, got {data!r}")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in data:
            if key not in known:
                raise SpecError(f"preprocess.{key} is not a field; known: {', '.join(known)}")
        try:
            return cls(**data)
        except SpecError as error:
            raise SpecError(f"preprocess.{error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
