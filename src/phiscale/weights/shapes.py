"""The shape of every tensor of a network, from its spec alone."""

from __future__ import annotations

from functools import lru_cache

from phiscale.spec import BlockSpec, NetworkSpec

__all__ = ["Shape", "tensor_shapes"]

Shape = tuple[int, ...]


@lru_cache(maxsize=64)
def tensor_shapes(spec: NetworkSpec) -> dict[str, Shape]:
    """Parameters and buffers of a network by our name, in the order of its ``state_dict``.

    For EfficientNets nothing is built, so a file is compared with every known one in a moment.

    Args:
        spec: The network.
    """
    if spec.head is None or any(stage.block != "mbconv" for stage in spec.stages):
        return _built(spec)
    bias = spec.conv_bias
    stem, last = spec.stem, spec.stages[-1].out_channels
    shapes = _conv_norm(
        "stem", (stem.out_channels, spec.in_channels, stem.kernel_size, stem.kernel_size), bias=bias
    )
    for block in spec.blocks():
        shapes |= _block(block, bias=bias)
    shapes |= _conv_norm("head", (spec.head.out_channels, last, 1, 1), bias=bias)
    if spec.num_classes:
        shapes |= {
            "classifier.weight": (spec.num_classes, spec.num_features),
            "classifier.bias": (spec.num_classes,),
        }
    return shapes


def _built(spec: NetworkSpec) -> dict[str, Shape]:
    import torch

    from phiscale.nn.network import Network

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return {name: tuple(tensor.shape) for name, tensor in Network(spec).state_dict().items()}


def _block(block: BlockSpec, *, bias: bool) -> dict[str, Shape]:
    prefix, kernel = f"stages.{block.stage_index}.{block.layer_index}", block.stage.kernel_size
    channels, squeezed = block.expanded_channels, block.se_channels
    shapes: dict[str, Shape] = {}
    if block.stage.expand_ratio != 1:
        shapes |= _conv_norm(f"{prefix}.expand", (channels, block.in_channels, 1, 1), bias=bias)
    shapes |= _conv_norm(f"{prefix}.depthwise", (channels, 1, kernel, kernel), bias=bias)
    if squeezed:
        shapes |= {
            f"{prefix}.se.reduce.weight": (squeezed, channels, 1, 1),
            f"{prefix}.se.reduce.bias": (squeezed,),
            f"{prefix}.se.expand.weight": (channels, squeezed, 1, 1),
            f"{prefix}.se.expand.bias": (channels,),
        }
    return shapes | _conv_norm(f"{prefix}.project", (block.out_channels, channels, 1, 1), bias=bias)


def _conv_norm(prefix: str, weight: Shape, *, bias: bool) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {f"{prefix}.conv.weight": weight}
    if bias:
        shapes[f"{prefix}.conv.bias"] = weight[:1]
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{prefix}.norm.{leaf}"] = weight[:1]
    shapes[f"{prefix}.norm.num_batches_tracked"] = ()
    return shapes
