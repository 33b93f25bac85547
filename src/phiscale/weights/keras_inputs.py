"""What the layers before the stem of a Keras network do to an image, as a mean and a std per channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from phiscale.preprocess import IMAGENET_STD
from phiscale.weights.keras_names import IDENTITY, Arrays, flatten

if TYPE_CHECKING:
    from phiscale.weights.hdf5 import KerasFile

__all__ = ["InputTransform", "input_transform"]


@dataclass(frozen=True, kw_only=True)
class InputTransform:
    """What the layers before the stem do to images of values 0 to 255.

    Attributes:
        value: Mean and std per channel, so that ``(image / 255 - mean) / std`` is what the layers give;
            None where that is not known.
        source: Where it is known from, or why it is not.
    """

    value: tuple[tuple[float, ...], tuple[float, ...]] | None
    source: str


def input_transform(file: KerasFile) -> InputTransform:
    """Fold the rescaling and normalisation before the stem into a mean and a std per channel.

    - With a config (``.keras``, and ``.h5`` of a whole model) every `Rescaling` and `Normalization`
      before ``stem_conv`` is carried out in order, whatever its numbers. Layers that do nothing at
      prediction, such as random augmentation, are passed over; any other leaves the transform unknown.
    - Without one the layers are those of `keras.applications`: ``Rescaling(1/255)`` and the
      `Normalization` in the file. Where its variance is ImageNet's *std* (0.229, 0.224, 0.225), the
      weights are the published ones: their std was stored as the variance, and ``weights="imagenet"``
      adds ``Rescaling(1/sqrt(std))``, which has no weights (tensorflow#49930), so that all three layers
      together divide by the std.

      Where the file lists other rescalings than these, the transform is unknown.

    A `Normalization` that was never adapted (mean 0, variance 1) leaves mean 0 and std 1.
    """
    try:
        with np.errstate(all="ignore"):  # odd numbers are found by the result
            return _from_weights(file) if file.config is None else _from_config(file)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return InputTransform(
            value=None, source=f"the numbers of the layers before the stem are wrong: {error}"
        )


@dataclass(kw_only=True)
class _Affine:
    """``scale · image + offset`` per channel, after the layers so far."""

    channels: int
    scale: Any = 1.0
    offset: Any = 0.0

    def rescale(self, scale: Any, offset: Any) -> None:
        scale, offset = self._per_channel(scale), self._per_channel(offset)
        self.scale, self.offset = self.scale * scale, self.offset * scale + offset

    def normalize(self, mean: Any, variance: Any, *, invert: bool = False) -> None:
        mean = self._per_channel(mean)
        std = np.maximum(np.sqrt(self._per_channel(variance)), 1e-7)  # Keras' epsilon
        self.rescale(*((std, mean) if invert else (1 / std, -mean / std)))

    def result(self, source: str) -> InputTransform:
        scale, offset = (np.broadcast_to(value, (self.channels,)) for value in (self.scale, self.offset))
        # Keras computes in float32; of the decimals that are the same there the shortest, 0.229.
        mean, std = (-offset / (255 * scale)).astype(np.float32), (1 / (255 * scale)).astype(np.float32)
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            return InputTransform(
                value=None, source="the layers before the stem lose or turn the image's values"
            )
        return InputTransform(value=(_decimals(mean), _decimals(std)), source=source)

    def _per_channel(self, value: Any) -> NDArray[np.float64]:
        while isinstance(value, Mapping):  # an array in a config, its type beside it
            value = value["config"] if "config" in value else value["value"]
        flat = np.asarray(value, np.float64).reshape(-1)
        if flat.size not in (1, self.channels):
            raise ValueError(f"{flat.size} values for {self.channels} channels")
        return flat


def _decimals(values: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float(np.format_float_positional(value)) + 0.0 for value in values)


def _from_weights(file: KerasFile) -> InputTransform:
    mean, variance = (file.tensors.get(f"normalization/{leaf}") for leaf in ("mean", "variance"))
    if mean is None or variance is None:
        return InputTransform(value=None, source="the file has neither a Normalization nor a config")
    affine = _Affine(channels=mean.size)
    affine.rescale(1 / 255, 0.0)
    affine.normalize(mean, variance)
    source = "Rescaling(1/255) and the file's Normalization, as in keras.applications"
    is_published = variance.shape == (3,) and np.allclose(variance, IMAGENET_STD, rtol=1e-5, atol=0)
    if is_published:
        affine.rescale(1 / np.sqrt(IMAGENET_STD), 0.0)
        source = 'the three layers of weights="imagenet", since the variance in the file is ImageNet\'s std'
    if file.rescalings not in (None, 1, 1 + is_published):
        return InputTransform(
            value=None,
            source=f"the file lists {file.rescalings} Rescaling layers, and only a config says what they do",
        )
    return affine.result(source)


def _from_config(file: KerasFile) -> InputTransform:
    stem, layers = file.tensors.get("stem_conv/kernel"), list(flatten(file.config))
    end = next((index for index, (_, name, _) in enumerate(layers) if name == "stem_conv"), None)
    if end is None or stem is None or stem.ndim != 4:
        return InputTransform(value=None, source="the config has no layer stem_conv")
    affine, done = _Affine(channels=stem.shape[2]), []
    for kind, name, values in layers[:end]:
        if kind == "Rescaling":
            affine.rescale(values["scale"], values.get("offset", 0.0))
        elif kind == "Normalization":
            affine.normalize(*_statistics(name, values, file.tensors), invert=values.get("invert") is True)
        elif IDENTITY.fullmatch(kind) or (kind == "ZeroPadding2D" and name == "stem_conv_pad"):
            continue
        else:
            return InputTransform(value=None, source=f"what a layer {kind} before the stem does is not known")
        done.append(kind)
    return affine.result(f"{', '.join(done) or 'no layer'} before the stem in the file's config")


def _statistics(name: str, values: Mapping[str, Any], tensors: Arrays) -> tuple[Any, Any]:
    """Mean and variance of a Normalization: given to its constructor, or adapted and among the weights."""
    if values.get("mean") is not None:
        return values["mean"], values["variance"]
    prefix = name if f"{name}/mean" in tensors else "normalization"
    return tensors[f"{prefix}/mean"], tensors[f"{prefix}/variance"]
