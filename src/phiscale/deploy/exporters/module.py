"""The network as torch's toolchains take it: one module from uint8 images to probabilities.

The blocks are the network's own, and every convolution has its norm folded into its weights. TensorFlow's
"SAME" padding is the convolution's own where it is the same on both sides, which is all that torch's
convolutions can do; an uneven one stays an operation before it. A kernel with zeros in front would make it
even, but engines have fast depthwise kernels for 3×3 and 5×5, not for 4×4 and 6×6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phiscale.data.transforms import Normalize
from phiscale.deploy.exporters.folding import Array, folded
from phiscale.errors import ModelDirError
from phiscale.nn.layers import Conv2dSame, ConvNormAct, MaxPool2dSame
from phiscale.nn.network import Network

if TYPE_CHECKING:
    from phiscale.preprocess import Preprocess
    from phiscale.spec import NetworkSpec
    from phiscale.weights.config import ModelDir

__all__ = [
    "DeployNetwork",
    "FoldedConv",
    "FromPlanes",
    "build_module",
    "example_images",
    "require_fixed_size",
    "to_text",
]


class DeployNetwork(nn.Module):
    """A network with its normalisation before it and softmax behind it.

    Args:
        spec: The network.
        tensors: Its folded weights, from `phiscale.deploy.exporters.folding.folded`.
        preprocess: Has the mean and std that images are normalised with.
    """

    def __init__(self, spec: NetworkSpec, tensors: Mapping[str, Array], preprocess: Preprocess) -> None:
        super().__init__()
        self.normalize = Normalize(preprocess)
        # On the meta device nothing is initialised, so torch's random state is left alone.
        with torch.device("meta"):
            self.network = Network(spec).to(memory_format=torch.contiguous_format)
            _fold(self.network)
        self.network.load_state_dict(
            {name: torch.from_numpy(value) for name, value in tensors.items()}, assign=True
        )
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Classify images: (N, H, W, C), uint8. Returns probabilities (N, K)."""
        # Floating point first: ExecuTorch's XNNPACK moves no bytes about.
        return self.classify(images.to(torch.float32).permute(0, 3, 1, 2))

    def classify(self, planes: Tensor) -> Tensor:
        """Classify planes: (N, C, H, W), float32 from 0 to 255. Returns probabilities (N, K)."""
        net = self.network
        x = net.pool(net.stem(self.normalize(planes)))
        for stage in net.stages:
            x = stage(x)
        # With the map's dimensions kept, XNNPACK pools too.
        pooled = net.head(x).mean((2, 3), keepdim=True)
        probabilities: Tensor = net.classifier(pooled.flatten(1)).softmax(dim=1)
        return probabilities


class FromPlanes(nn.Module):
    """The same for engines that unpack images themselves: (N, C, H, W), float32 from 0 to 255."""

    def __init__(self, network: DeployNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, planes: Tensor) -> Tensor:
        """Classify planes: (N, C, H, W). Returns probabilities (N, K)."""
        return self.network.classify(planes)


class FoldedConv(nn.Conv2d):
    """A convolution with its norm inside, and the activation behind it.

    Args:
        source: Convolution, norm and activation that it stands for; only their shapes are taken.
    """

    def __init__(self, source: ConvNormAct) -> None:
        conv = source.conv
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            groups=conv.groups,
        )
        self.act = source.act
        self._same = isinstance(conv, Conv2dSame)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Returns (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        padding = self.padding
        if self._same:
            total = _total_padding(x, self.kernel_size, self.stride)
            if all(isinstance(t, int) and t % 2 == 0 for t in total):
                padding = (total[0] // 2, total[1] // 2)
            else:
                x = _pad(x, total)
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        activated: Tensor = self.act(x)
        return activated


class _MaxPool(nn.Module):
    """`MaxPool2dSame` for an image size that may be a symbol."""

    def __init__(self, source: MaxPool2dSame) -> None:
        super().__init__()
        self.kernel_size, self.stride = source.kernel_size, source.stride

    def forward(self, x: Tensor) -> Tensor:
        padded = _pad(x, _total_padding(x, self.kernel_size, self.stride), value=-torch.inf)
        return F.max_pool2d(padded, self.kernel_size, self.stride)


def build_module(model: ModelDir, tensors: Mapping[str, Array]) -> DeployNetwork:
    """The module that a model is exported as; it takes any image size until it is traced.

    Args:
        model: Has spec and preprocessing.
        tensors: Its weights by our names.
    """
    return DeployNetwork(model.spec, folded(tensors, eps=model.spec.norm_eps), model.preprocess)


def example_images(spec: NetworkSpec, batch: int = 1) -> Tensor:
    """Black images (batch, H, W, C) in uint8, to trace a module with."""
    return torch.zeros(batch, *spec.image_size, spec.in_channels, dtype=torch.uint8)


def require_fixed_size(format: str, *, dynamic_size: bool) -> None:  # noqa: A002
    """Refuse a free image size for engines that plan for one.

    Raises:
        ModelDirError: Height and width shall vary.
    """
    if dynamic_size:
        raise ModelDirError(
            f"{format} is exported for one image size; leave --dynamic-size out, or export onnx"
        )


def to_text(metadata: Mapping[str, str] | None) -> str:
    """Metadata as one JSON text, for formats that keep a file or a string and no table."""
    return json.dumps(dict(metadata or {}), indent=2)


def _fold(network: Network) -> None:
    """Put folded layers into the place of convolutions with norms."""
    for name, module in list(network.named_modules()):
        if isinstance(module, ConvNormAct):
            network.set_submodule(name, FoldedConv(module))
        elif isinstance(module, MaxPool2dSame):
            network.set_submodule(name, _MaxPool(module))


def _pad(x: Tensor, total: tuple[int, int], *, value: float = 0.0) -> Tensor:
    """Pad as "SAME" does, the odd pixel last."""
    vertical, horizontal = total
    top, left = vertical // 2, horizontal // 2
    return F.pad(x, (left, horizontal - left, top, vertical - top), value=value)


def _total_padding(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int]:
    """Vertical and horizontal "SAME" padding: (ceil(n / s) - 1) · s + k - n = k - s + (-n mod s), at least 0.

    `phiscale.nn.layers.pad_same` decides by the size; torch.export cannot keep a size free that was
    compared with a number.
    """
    vertical, horizontal = (
        # At stride 1 every size needs the same, so it is a number there and not a symbol.
        k - 1 if s == 1 else torch.sym_max(k - s + (-n) % s, 0)
        for n, k, s in zip(x.shape[-2:], kernel, stride, strict=True)
    )
    return vertical, horizontal  # type: ignore[return-value]  # symbols count as numbers
