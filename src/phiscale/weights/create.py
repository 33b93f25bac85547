"""`phiscale.create_model`: a network by name, with weights where they are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from phiscale.families import get_spec, list_specs
from phiscale.nn.network import Network, build_network
from phiscale.nn.settings import change_settings
from phiscale.spec import Activation, NetworkSpec, Padding
from phiscale.weights.checkpoint import Checkpoint, open_checkpoint
from phiscale.weights.load import load_checkpoint
from phiscale.weights.warm_start import WARM_STARTS, load_warm_start

__all__ = ["create_model"]


def create_model(
    spec: str | Path | NetworkSpec,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    weights: str | Path | None = None,
    classes: Sequence[str] | None = None,
    padding: Padding | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    activation: Activation | None = None,
    bias: bool | None = None,
    norm_eps: float | None = None,
    norm_momentum: float | None = None,
) -> Network:
    """Build a network; every argument left at None is the weights', where there are some, or the spec's.

    Args:
        spec: A name from `list_specs`, a JSON file, or a spec.
        num_classes: Width of the classifier; 0 leaves it out. With weights of another number of classes
            the classifier is new.
        in_channels: Channels of the image; a stem trained with others is adapted, so that an image whose
            channels are equal gets the same answer.
        image_size: Native side or (height, width) in pixels; noted in the spec, any size is taken.
        weights: ``"imagenet"``, ``"lite0-warm-start"`` (B0), a name of the catalog, anybody's file, a
            folder, or ``hf://user/repository``; see `load_weights`. None gives random weights.
        classes: Names of classes, whose rows are picked from the classifier of the weights.
        padding: ``"same"`` or ``"symmetric"``.
        dropout: Rate before the classifier.
        drop_path: Rate of the last block; block i of n has drop_path · i / n.
        activation: ``"swish"``, ``"relu"``, ``"relu6"`` or ``"hard_swish"``.
        bias: Whether convolutions before a norm have a bias.
        norm_eps: Epsilon of batch normalisation.
        norm_momentum: Momentum of batch normalisation in PyTorch's sense.

    Returns:
        The network in train mode, like torchvision's.

    Raises:
        SpecError: An argument is not valid, or no network has this name.
        ModelDirError: The weights cannot be had or read, or belong to another network.

    Examples:
        >>> net = create_model("efficientnet_b0", num_classes=10)
        >>> net.classifier.out_features
        10
    """
    if classes is not None and num_classes is None:
        num_classes = len(classes)
    warm_start = str(weights) if str(weights) in WARM_STARTS else None
    checkpoint = None
    if weights is not None and warm_start is None:
        checkpoint = open_checkpoint(weights, model=get_spec(spec))
        # A published name says nothing of classes and channels, a spec of the user's own does.
        if isinstance(spec, str) and spec in list_specs():
            num_classes = num_classes if num_classes is not None else checkpoint.spec.num_classes or None
            in_channels = in_channels if in_channels is not None else checkpoint.spec.in_channels
    net = build_network(
        spec,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        padding=padding,
        dropout=dropout,
        drop_path=drop_path,
        activation=activation,
        bias=bias,
        norm_eps=norm_eps,
        norm_momentum=norm_momentum,
    )
    if warm_start is not None:
        load_warm_start(net, warm_start)
    elif checkpoint is not None:
        load_checkpoint(net, checkpoint, classes=classes)
        _warn(checkpoint, padding=padding, norm_eps=norm_eps)
    # What is asked for in so many words wins over what the weights were trained with.
    change_settings(net, padding=padding, norm_eps=norm_eps, norm_momentum=norm_momentum)
    return net


def _warn(checkpoint: Checkpoint, *, padding: Padding | None, norm_eps: float | None) -> None:
    """Warn of settings that nobody said, and of those that the weights were not trained with."""
    for name, asked in (("padding", padding), ("norm_eps", norm_eps)):
        trained = checkpoint.settings[name].value
        if trained is None and asked is None:
            warnings.warn(
                f"{checkpoint.source} does not say with what {name} it was trained; "
                f"{getattr(checkpoint.spec, name)!r} is taken, as TensorFlow and timm's tf_ networks have it "
                "(timm's others have padding='symmetric', norm_eps=1e-5); give both to be sure",
                stacklevel=3,
            )
            return
        if None not in (trained, asked) and trained != asked:
            warnings.warn(
                f"{name}={asked!r} is asked for, but {checkpoint.source} was trained with {trained!r}; "
                "accuracy may fall",
                stacklevel=3,
            )
