"""Publishers' own networks, to compare with: built by their libraries, filled with a file's tensors.

The libraries are optional. timm, torchvision, efficientnet_pytorch (and efficientnet_lite_pytorch),
transformers and Keras on its torch backend are known.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from phiscale.errors import MissingDependencyError, ModelDirError
from phiscale.spec import NetworkSpec

__all__ = ["build_reference", "fill_reference", "library_of", "network_name"]

_COUNTER = "num_batches_tracked"
# Width and depth, which transformers' configuration asks for.
_WIDTH_DEPTH = {
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b1": (1.0, 1.1),
    "efficientnet_b2": (1.1, 1.2),
    "efficientnet_b3": (1.2, 1.4),
    "efficientnet_b4": (1.4, 1.8),
    "efficientnet_b5": (1.6, 2.2),
    "efficientnet_b6": (1.8, 2.6),
    "efficientnet_b7": (2.0, 3.1),
    "efficientnet_b8": (2.2, 3.6),
}


def build_reference(
    layout: str, spec: NetworkSpec, *, settings: Mapping[str, Any] | None = None
) -> nn.Module:
    """A publisher's own network, in eval mode, with its own random weights.

    It takes (N, channels, H, W), normalised, and returns logits, or pooled features where there are no
    classes. For publishers whose padding depends on the size it is right at the spec's image size only.

    Args:
        layout: Whose network.
        spec: Which; its classes, channels and image size.
        settings: ``padding`` and ``norm_eps``, where the publisher leaves the choice (timm, and the epsilon
            of transformers); the spec's where left out.

    Raises:
        ModelDirError: The publisher has no such network.
        MissingDependencyError: The library is not installed.
    """
    if layout not in _BUILDERS:
        raise ModelDirError(f"the {layout} layout has no library to compare with")
    spec = replace(spec, **{name: value for name, value in (settings or {}).items() if value is not None})
    library_of(layout, spec)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other channels than three, and of their own old age
        return _Reference(_BUILDERS[layout](spec)).eval()


def fill_reference(reference: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network from `build_reference`, by the publisher's names; every one must fit.

    Args:
        reference: The network.
        tensors: By the publisher's names, in its order of axes. Counters of batches may be left out.

    Raises:
        ModelDirError: A tensor is missing, unknown or of another shape.
    """
    assert isinstance(reference, _Reference)
    own = reference.named_tensors()
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}
    needed = {name for name in own if not name.endswith(_COUNTER)}
    wrong = sorted(
        name
        for name in needed | given.keys()
        if name not in needed or name not in given or own[name].shape != given[name].shape
    )
    if wrong:
        raise ModelDirError(f"the publisher's network does not take these tensors, such as {wrong[0]}")
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)


class _Reference(nn.Module):
    """A publisher's network with an output of one shape, (N, classes)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        if _is_keras(self.network):
            x = x.permute(0, 2, 3, 1)
        output = self.network(x)
        logits: Tensor = getattr(output, "logits", output)
        return logits.flatten(1)

    def named_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by the publisher's names, to be written into."""
        if _is_keras(self.network):
            return {variable.path: variable.value for variable in self.network.weights}
        return dict(self.network.state_dict())


def _is_keras(network: Any) -> bool:
    return type(network).__module__.startswith("keras.")


def _timm(spec: NetworkSpec) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(
        network_name("timm", spec),
        num_classes=spec.num_classes,
        in_chans=spec.in_channels,
        bn_eps=spec.norm_eps,
    )
    return network


def _torchvision(spec: NetworkSpec) -> nn.Module:
    from torchvision.models import get_model

    network = get_model(spec.name, weights=None, num_classes=max(1, spec.num_classes))
    if spec.num_classes == 0:
        network.classifier = nn.Identity()
    if spec.in_channels != 3:
        stem = network.features[0][0]
        network.features[0][0] = nn.Conv2d(
            spec.in_channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False
        )
    assert isinstance(network, nn.Module)
    return network


def _lukemelas(spec: NetworkSpec) -> nn.Module:
    module = importlib.import_module(library_of("lukemelas", spec))
    network: nn.Module = module.EfficientNet.from_name(
        network_name("lukemelas", spec),
        in_channels=spec.in_channels,
        num_classes=max(1, spec.num_classes),
        image_size=list(spec.image_size),
    )
    if spec.num_classes == 0:
        network._fc = nn.Identity()
    return network


def _huggingface(spec: NetworkSpec) -> nn.Module:
    import transformers

    width, depth = _WIDTH_DEPTH[spec.name]
    assert spec.head is not None
    values: dict[str, Any] = {
        "num_channels": spec.in_channels,
        "image_size": spec.image_size[0],
        "width_coefficient": width,
        "depth_coefficient": depth,
        "hidden_dim": spec.head.out_channels,
        "depthwise_padding": list(_odd_blocks(spec)),
        "batch_norm_eps": spec.norm_eps,
        "num_labels": max(1, spec.num_classes),
    }
    config = transformers.EfficientNetConfig(**values)
    network: nn.Module = transformers.EfficientNetForImageClassification(config)
    if spec.num_classes == 0:
        network.classifier = nn.Identity()
    return network


def _odd_blocks(spec: NetworkSpec) -> Iterator[int]:
    """Blocks of stride 2 that see an odd size, which transformers' configuration lists."""
    side = -(-spec.image_size[0] // spec.stem.stride)
    for index, block in enumerate(spec.blocks()):
        if block.stride == 2 and side % 2:
            yield index
        side = -(-side // block.stride)


def _keras(spec: NetworkSpec) -> Any:
    if os.environ.setdefault("KERAS_BACKEND", "torch") != "torch":
        raise ModelDirError("Keras is set to another backend than torch; set KERAS_BACKEND=torch")
    import keras

    build = getattr(keras.applications, network_name("keras", spec))
    model = build(
        weights=None,
        input_shape=(*spec.image_size, spec.in_channels),
        include_top=spec.num_classes > 0,
        classes=max(1, spec.num_classes),
        pooling="avg",
        classifier_activation=None,
    )
    # Without the layers before the stem: what they do is in the preprocessing.
    return keras.Model(model.get_layer("stem_conv_pad").input, model.output)


_BUILDERS: dict[str, Callable[[NetworkSpec], Any]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "lukemelas": _lukemelas,
    "huggingface": _huggingface,
    "keras": _keras,
}


def library_of(layout: str, spec: NetworkSpec) -> str:
    """The package with a publisher's network, which must be installed.

    Raises:
        ModelDirError: The publisher has no such network, or there is no package.
        MissingDependencyError: It is not installed.
    """
    network_name(layout, spec)
    package = {"lukemelas": "efficientnet_pytorch", "huggingface": "transformers"}.get(layout, layout)
    if layout == "lukemelas" and "lite" in spec.name:
        package = "efficientnet_lite_pytorch"
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        name = package.replace("_", "-")
        raise MissingDependencyError(f"{name} is not installed; run: pip install {name}") from None
    return package


def network_name(layout: str, spec: NetworkSpec) -> str:
    """The publisher's name of a network.

    Raises:
        ModelDirError: It has none.

    Examples:
        >>> from phiscale.families import get_spec
        >>> network_name("timm", get_spec("efficientnet_b0"))
        'tf_efficientnet_b0'
    """
    if layout not in _NETWORKS:
        raise ModelDirError(f"the {layout} layout has no library to compare with")
    number = spec.name.removeprefix("efficientnet_")
    if spec.name == number or number not in _NETWORKS[layout]:
        raise ModelDirError(f"{layout} has no network {spec.name} to compare with")
    match layout:
        case "timm":
            return f"tf_{spec.name}" if spec.padding == "same" else spec.name
        case "lukemelas":
            return f"efficientnet-{number}"
        case "huggingface" | "keras":
            return f"EfficientNet{number.upper()}"
    return spec.name


_B = tuple(f"b{index}" for index in range(9))
_LITE = tuple(f"lite{index}" for index in range(5))
# Every EfficientNet that a library has, without "efficientnet_".
_NETWORKS = {
    "timm": (*_B, "l2", *_LITE),
    "torchvision": _B[:8],
    "lukemelas": (*_B, "l2", *_LITE),
    "huggingface": _B,
    "keras": _B[:8],
}
