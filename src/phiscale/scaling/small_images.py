"""Networks for small images: lower output stride instead of a last feature map of one pixel.

EfficientNet divides each side by 32, so an image of 32 px ends in a single pixel and the last stages
have nothing left to see. Setting the first strides to 1 keeps the operators and the weights' shapes.
"""

from __future__ import annotations

from dataclasses import replace

from phiscale.spec import NetworkSpec, as_size

__all__ = ["for_image_size"]


def for_image_size(spec: NetworkSpec, image_size: int | tuple[int, int], *, min_map: int = 4) -> NetworkSpec:
    """The network for another image size, with strides lowered until the last map is large enough.

    Strides are lowered from the stem on, one after the other, so the later stages, where most
    channels are, see a larger map. Images of at least ``min_map · output_stride`` change nothing but
    the size.

    Args:
        spec: The network; it is not changed.
        image_size: Side or (height, width) in pixels.
        min_map: Smallest side of the last feature map, in pixels.

    Examples:
        >>> from phiscale import get_spec
        >>> for_image_size(get_spec("efficientnet_b0"), 32).output_stride
        8
    """
    spec = replace(spec, image_size=as_size(image_size))
    while min(spec.image_size) < min_map * spec.output_stride:
        lowered = _lower_first_stride(spec)
        if lowered is None:
            break
        spec = lowered
    return spec


def _lower_first_stride(spec: NetworkSpec) -> NetworkSpec | None:
    if spec.stem.max_pool:
        return replace(spec, stem=replace(spec.stem, max_pool=False))
    if spec.stem.stride > 1:
        return replace(spec, stem=replace(spec.stem, stride=1))
    for index, stage in enumerate(spec.stages):
        if stage.stride > 1:
            stages = list(spec.stages)
            stages[index] = replace(stage, stride=1)
            return replace(spec, stages=tuple(stages))
    return None
