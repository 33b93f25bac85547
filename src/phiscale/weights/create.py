"""`phiscale.create_model`: a network by name, with weights where they are asked for."""

from __future__ import annotations

from pathlib import Path

from phiscale.errors import ModelDirError
from phiscale.nn.network import Network, build_network
from phiscale.spec import Activation, NetworkSpec, Padding
from phiscale.weights.load import load_weights

__all__ = ["create_model"]


def create_model(
    spec: str | Path | NetworkSpec,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    weights: str | Path | None = None,
    padding: Padding | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    activation: Activation | None = None,
    bias: bool | None = None,
    norm_eps: float | None = None,
    norm_momentum: float | None = None,
) -> Network:
    """Build a network; every argument left at None is the spec's.

    Args:
        spec: A name from `list_specs`, a JSON file, or a spec.
        num_classes: Width of the classifier; 0 leaves it out.
        in_channels: Channels of the image.
        image_size: Native side or (height, width) in pixels; noted in the spec, any size is taken.
        weights: A model directory or a weight file of this network; None gives random weights. With
            another number of classes the classifier stays random.
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
        ModelDirError: The weights cannot be read, or belong to another network.

    Examples:
        >>> net = create_model("efficientnet_b0", num_classes=10)
        >>> net.classifier.out_features
        10
    """
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
    if weights is not None:
        report = load_weights(net, weights, strict=False)
        unfilled = [*report.new, *(mismatch.name for mismatch in report.skipped)]
        foreign = [name for name in unfilled if not name.startswith(("classifier.", "stem.conv."))]
        if foreign:
            raise ModelDirError(
                f"{weights} is of another network than {net.spec.name}: {len(foreign)} tensors do not fit, "
                f"such as {foreign[0]}; load_weights(net, file, strict=False) takes what fits"
            )
    return net
