"""From a spec to a network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phiscale.errors import ShapeError
from phiscale.families import get_spec
from phiscale.nn.blocks import make_block
from phiscale.nn.layers import ConvNormAct, Dropout, LayerOptions, MaxPool2dSame
from phiscale.spec import Activation, NetworkSpec, Padding, as_size

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]

__all__ = ["Network", "build_network", "init_weights"]


class Network(nn.Module):
    """A ConvNet built from its spec: stem, stages of blocks, head, pooling, dropout, classifier.

    Weights are initialised as in the authors' code. The network is in train mode, like torchvision's.

    Args:
        spec: What to build; kept as `spec`.

    Examples:
        >>> net = Network(get_spec("efficientnet_b0")).eval()
        >>> [tuple(f.shape[1:]) for f in net.features(torch.zeros(1, 3, 64, 64))][-1]
        (320, 2, 2)
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.grad_checkpointing = False
        options = LayerOptions.of(spec)
        stem = spec.stem
        self.stem = ConvNormAct(
            spec.in_channels, stem.out_channels, stem.kernel_size, stride=stem.stride, options=options
        )
        self.pool = _make_pool(spec) if stem.max_pool else nn.Identity()
        stages: list[nn.Sequential] = [nn.Sequential() for _ in spec.stages]
        for block in spec.blocks():
            stages[block.stage_index].append(make_block(block, options))
        self.stages = nn.ModuleList(stages)
        self.head = (
            ConvNormAct(spec.stages[-1].out_channels, spec.head.out_channels, 1, options=options)
            if spec.head
            else nn.Identity()
        )
        self.dropout = Dropout(spec.dropout)
        self.classifier = _make_classifier(spec)
        self.apply(init_weights)
        # One convolution with channels_last weights is enough for the whole network to run in that
        # layout whatever the input's is: on CPUs that saves a reorder and a copy per convolution.
        self.to(memory_format=torch.channels_last)

    @property
    def num_features(self) -> int:
        """Channels of the last feature map."""
        return self.spec.num_features

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of every stage.

        Args:
            x: (N, in_channels, H, W), floating point.

        Returns:
            One (N, C_i, H_i, W_i) per stage of the spec, in order; stem and head are left out.

        Raises:
            ShapeError: `x` has a wrong rank, type or channel count, or is too small.
        """
        self._check_input(x)
        x = self.pool(self.stem(x))
        outputs = []
        for stage in self.stages:
            x = self._run_stage(stage, x)
            outputs.append(x)
        return outputs

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, after the head convolution where there is one.

        Args:
            x: (N, in_channels, H, W), floating point.

        Returns:
            (N, num_features, ceil(H / output_stride), ceil(W / output_stride)).

        Raises:
            ShapeError: `x` has a wrong rank, type or channel count, or is too small.
        """
        self._check_input(x)
        x = self.pool(self.stem(x))
        for stage in self.stages:
            x = self._run_stage(stage, x)
        return self.head(x)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Pool and classify a last feature map.

        Args:
            features: (N, num_features, H, W).
            pre_logits: Whether to stop before the classifier.

        Returns:
            (N, num_classes), or (N, num_features) with `pre_logits` or without a classifier.
        """
        pooled = self.dropout(features.mean((2, 3)))
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Classify x: (N, in_channels, H, W). Returns logits (N, num_classes).

        Raises:
            ShapeError: `x` has a wrong rank, type or channel count, or is too small.
        """
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Put a newly initialised classifier in place; 0 leaves it out.

        Raises:
            SpecError: `num_classes` is negative.
        """
        self.spec = replace(self.spec, num_classes=num_classes)
        weight = next(self.parameters())
        self.classifier = _make_classifier(self.spec).to(weight.device, weight.dtype).train(self.training)
        self.classifier.apply(init_weights)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: keep only the input of each block and run it again in the backward pass."""
        self.grad_checkpointing = enable

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return stage(x)
        for block in stage.children():

            def contexts(block: nn.Module = block) -> Contexts:
                return nullcontext(), _frozen_statistics(block)

            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return x

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4:
            raise ShapeError(
                f"expected a batch of shape (N, {self.spec.in_channels}, H, W), got {tuple(x.shape)}; "
                "a single image needs x.unsqueeze(0)"
            )
        if x.shape[1] != self.spec.in_channels:
            raise ShapeError(
                f"expected {self.spec.in_channels} channels at dimension 1, got a batch of shape "
                f"{tuple(x.shape)}; build with in_channels={x.shape[1]}, or permute NHWC to NCHW"
            )
        if not x.is_floating_point():
            raise ShapeError(f"expected a floating-point batch, got {x.dtype}; normalise the images first")
        least = self.spec.output_stride
        if x.shape[2] < least or x.shape[3] < least:
            raise ShapeError(
                f"an input of {x.shape[2]}×{x.shape[3]} px is too small: {self.spec.name} divides each side "
                f"by {least}; give at least {least}×{least}, or lower the strides with for_image_size"
            )


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Keep batch norm from counting a batch twice while a checkpointed block runs again."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def _make_pool(spec: NetworkSpec) -> nn.Module:
    return MaxPool2dSame(3, 2) if spec.padding == "same" else nn.MaxPool2d(3, 2, padding=1)


def _make_classifier(spec: NetworkSpec) -> nn.Module:
    return nn.Linear(spec.num_features, spec.num_classes) if spec.num_classes else nn.Identity()


def init_weights(module: nn.Module) -> None:
    """Initialise one module as the authors' code does.

    Convolutions: normal with variance 2 / (k² · out_channels / groups). Classifier: uniform within
    1 / √num_classes. Biases 0. Norm: weight 1, bias 0.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        bound = 1.0 / math.sqrt(module.out_features)
        nn.init.uniform_(module.weight, -bound, bound)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def build_network(
    spec: str | Path | NetworkSpec,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    padding: Padding | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    activation: Activation | None = None,
    bias: bool | None = None,
    norm_eps: float | None = None,
    norm_momentum: float | None = None,
) -> Network:
    """Build a network with random weights; every argument left at None is the spec's.

    Args:
        spec: A name from `list_specs`, a JSON file, or a spec.
        num_classes: Width of the classifier; 0 leaves it out.
        in_channels: Channels of the image.
        image_size: Native side or (height, width) in pixels; noted in the spec, any size is taken.
        padding: ``"same"`` or ``"symmetric"``.
        dropout: Rate before the classifier.
        drop_path: Rate of the last block.
        activation: ``"swish"``, ``"relu"``, ``"relu6"`` or ``"hard_swish"``.
        bias: Whether convolutions before a norm have a bias.
        norm_eps: Epsilon of batch normalisation.
        norm_momentum: Momentum of batch normalisation in PyTorch's sense.

    Raises:
        SpecError: An argument is not valid, or no network has this name.
    """
    changes = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": None if image_size is None else as_size(image_size),
        "padding": padding,
        "dropout": dropout,
        "drop_path": drop_path,
        "activation": activation,
        "conv_bias": bias,
        "norm_eps": norm_eps,
        "norm_momentum": norm_momentum,
    }
    chosen = get_spec(spec)
    given = {name: value for name, value in changes.items() if value is not None}
    return Network(replace(chosen, **given) if given else chosen)  # type: ignore[arg-type]
