"""The random transforms of training.

Each sample's randomness comes from a seed that is an argument. The cheap operations (shift, flip) draw
from a generator of their own; those of torchvision draw from torch's global generator, which is seeded
for the one sample and put back afterwards.

A JPEG file goes through `TrainTransform.from_file`, which draws the crop first, and decodes and resizes no
more of the file than that crop takes. All that is random is drawn as for a decoded image, in the same order.
"""

from __future__ import annotations

import contextlib
import math
import random
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from phiscale.data.decode import ImageInput, decode
from phiscale.data.jpeg import open_jpeg, read_crop, read_jpeg
from phiscale.data.sizes import fit_size, shifted
from phiscale.data.transforms import to_tensor
from phiscale.errors import RecipeError
from phiscale.preprocess import Preprocess

__all__ = ["Augment", "Policy", "TrainTransform"]

Policy = Literal["none", "randaugment", "autoaugment", "trivial"]

_MAGNITUDES = 31  # torchvision's scale: 0 to 30, of which 9 is the usual choice


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is random about a training image.

    Attributes:
        policy: ``"none"``, ``"randaugment"``, ``"autoaugment"`` (the ImageNet policy) or ``"trivial"``.
        magnitude: Strength of RandAugment, 0 to 30.
        num_ops: Operations of RandAugment per image.
        crop_scale: Least and most area of a random crop, as shares of the image, in (0, 1]. The crop is
            resized to the final size. ``(1, 1)``: no random crop; the image is brought to size as in
            evaluation.
        pad_crop: Random shift by up to this many pixels in each direction, for small images. The
            border's own colours fill the gap.
        hflip: Probability of a mirror image, left to right.
        erasing: Probability that a random rectangle is replaced by the mean colour.

    Raises:
        RecipeError: A field has a value that cannot be carried out.

    Examples:
        >>> Augment(pad_crop=4).crop_scale
        (1.0, 1.0)
    """

    policy: Policy = "none"
    magnitude: int = 9
    num_ops: int = 2
    crop_scale: tuple[float, float] = (1.0, 1.0)
    pad_crop: int = 0
    hflip: float = 0.5
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.policy not in typing.get_args(Policy):
            choices = ", ".join(typing.get_args(Policy))
            raise RecipeError(f"policy must be one of {choices}; got {self.policy!r}")
        for name, low, high in (("magnitude", 0, _MAGNITUDES - 1), ("num_ops", 1, 16), ("pad_crop", 0, 512)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise RecipeError(f"{name} must be an integer from {low} to {high}, got {value!r}")
        for name in ("hflip", "erasing"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} is a probability from 0 to 1, got {getattr(self, name)!r}")
        scale = self.crop_scale
        pair = isinstance(scale, tuple | list) and len(scale) == 2 and all(_is_number(v) for v in scale)
        if not pair or not 0 < scale[0] <= scale[1] <= 1:
            raise RecipeError(
                f"crop_scale must be two shares of the area, 0 < least ≤ most ≤ 1, got {scale!r}; "
                "try (0.35, 1.0)"
            )
        object.__setattr__(self, "crop_scale", (float(scale[0]), float(scale[1])))


class TrainTransform:
    """The transform of training: `augment` on top of what `preprocess` demands.

    Examples:
        >>> transform = TrainTransform(Preprocess.for_size(32), Augment(pad_crop=4))
        >>> image = Image.linear_gradient("L")
        >>> bool((transform(image, seed=1) == transform(image, seed=1)).all())
        True
    """

    def __init__(self, preprocess: Preprocess, augment: Augment) -> None:
        self.preprocess = preprocess
        self.augment = augment
        self._crop = _random_crop(preprocess, augment)
        self._policy = _policy(preprocess, augment)
        self._erase = _erasing(preprocess, augment)
        self._uses_torch_generator = any(op is not None for op in (self._crop, self._policy, self._erase))

    def __call__(self, image: Image.Image, *, seed: int | None = None) -> Tensor:
        """Decode, crop or resize, change colours and shapes, shift, mirror, erase.

        Args:
            image: Of any mode.
            seed: Decides everything random; None draws one from torch's global generator.

        Returns:
            uint8 (channels, height, width) of `preprocess`.

        Raises:
            ImageError: The image cannot be decoded.
        """
        preprocess = self.preprocess
        image = decode(image, background=preprocess.background, channels=preprocess.channels)
        with self._seeded(seed) as rng:
            image = fit_size(image, preprocess) if self._crop is None else self._crop(image)
            return self._finish(image, rng)

    def from_file(self, file: ImageInput, *, seed: int | None = None) -> Tensor | None:
        """What the transform makes of a JPEG file, in less time.

        The pixels differ from those of the transform of the decoded file by less than one grey level on
        average: a large photograph is decoded at reduced size, see `phiscale.data.jpeg`, and some values are
        rounded otherwise.

        Args:
            file: As for `phiscale.data.decode.decode`.
            seed: As for a decoded image, to the same effect.

        Returns:
            uint8 (channels, height, width), or None where the file has to be decoded and transformed.
        """
        preprocess = self.preprocess
        if self._crop is None:
            pixels = read_jpeg(file, preprocess)
            if pixels is None:
                return None
            with self._seeded(seed) as rng:
                return self._finish(pixels, rng)
        jpeg = open_jpeg(file)
        if jpeg is None:
            return None
        with self._seeded(seed) as rng:
            pixels = read_crop(
                jpeg,
                self._draw_crop(jpeg.size),
                preprocess.size,
                interpolation=preprocess.interpolation,
                channels=preprocess.channels,
            )
            return None if pixels is None else self._finish(pixels, rng)

    @contextlib.contextmanager
    def _seeded(self, seed: int | None) -> Iterator[random.Random]:
        """The generator of the cheap operations, with torch's seeded where an operation draws from it."""
        if seed is None:
            seed = int(torch.randint(2**62, ()).item())
        with _torch_seeded(seed) if self._uses_torch_generator else contextlib.nullcontext():
            yield random.Random(seed)

    def _draw_crop(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(left, top, width, height) in a picture of a size (width, height), as torchvision draws it."""
        # Of a picture, torchvision asks its size alone; this one has no pixels.
        picture = torch.empty((1, size[1], size[0]), dtype=torch.uint8, device="meta")
        drawn = self._crop.make_params([picture])
        return drawn["left"], drawn["top"], drawn["width"], drawn["height"]

    def _finish(self, image: Image.Image | npt.NDArray[np.uint8], rng: random.Random) -> Tensor:
        """What comes after the size: colours and shapes, shift, mirror, erase.

        Args:
            image: An image, or its pixels (H, W, C), at the final size.
            rng: For shift and mirror.

        Returns:
            uint8 (C, H, W).
        """
        if self._policy is not None:
            if isinstance(image, np.ndarray):
                image = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
            image = self._policy(image)
        tensor = to_tensor(self._shift_and_flip(np.asarray(image), rng))
        return tensor if self._erase is None else self._erase(tensor)

    def _shift_and_flip(self, pixels: npt.NDArray[np.uint8], rng: random.Random) -> npt.NDArray[np.uint8]:
        """pixels: (H, W) or (H, W, C). Returns the same shape."""
        most = self.augment.pad_crop
        if most:
            down, right = rng.randint(-most, most), rng.randint(-most, most)
            pixels = shifted(shifted(pixels, down, axis=0), right, axis=1)
        if self.augment.hflip and rng.random() < self.augment.hflip:
            pixels = pixels[:, ::-1]
        return pixels


@contextlib.contextmanager
def _torch_seeded(seed: int) -> Iterator[None]:
    # Not torch.random.fork_rng: it also walks through every accelerator, for each sample.
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        yield
    finally:
        generator.set_state(state)


def _random_crop(preprocess: Preprocess, augment: Augment) -> Any:
    if augment.crop_scale == (1.0, 1.0):
        return None
    return v2.RandomResizedCrop(
        preprocess.size,
        scale=augment.crop_scale,
        interpolation=InterpolationMode(preprocess.interpolation),
        antialias=True,
    )


def _policy(preprocess: Preprocess, augment: Augment) -> Any:
    red, green, blue = (round(value) for value in preprocess.background)
    grey = Image.new("RGB", (1, 1), (red, green, blue)).convert("L").getpixel((0, 0))
    fill = [red, green, blue] if preprocess.channels == 3 else [grey]
    common: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR, "fill": fill}
    match augment.policy:
        case "none":
            return None
        case "randaugment":
            return v2.RandAugment(
                num_ops=augment.num_ops,
                magnitude=augment.magnitude,
                num_magnitude_bins=_MAGNITUDES,
                **common,
            )
        case "autoaugment":
            return v2.AutoAugment(**common)
        case "trivial":
            return v2.TrivialAugmentWide(num_magnitude_bins=_MAGNITUDES, **common)


def _erasing(preprocess: Preprocess, augment: Augment) -> Any:
    if augment.erasing == 0:
        return None
    # The mean becomes zero when the batch is normalised.
    return v2.RandomErasing(p=augment.erasing, value=[round(255 * mean) for mean in preprocess.mean])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
