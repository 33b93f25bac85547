"""Other people's networks beside ours, with the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from phiscale.nn.network import Network, build_network
from phiscale.spec import Padding

__all__ = [
    "copy_by_position",
    "difference",
    "images",
    "ours_like",
    "perturb",
    "reference",
    "run_with_stages",
    "stages_of",
]


def reference(library: str, name: str, *sizes: tuple[int, int], seed: int = 0) -> nn.Module:
    """A network of timm or torchvision in eval mode, with random weights and odd BatchNorm statistics.

    Args:
        library: ``"timm"`` or ``"torchvision"``.
        name: Its name there.
        sizes: Image sizes that it will be run at.
        seed: Of weights and statistics.
    """
    torch.manual_seed(seed)
    net: nn.Module
    if library == "timm":
        net = timm.create_model(name, pretrained=False)
    else:
        net = torchvision.models.get_model(name, weights=None)
    perturb(net, sizes)
    return net.eval()


def images(count: int, size: tuple[int, int]) -> Tensor:
    """Random images with colours and coarse shapes of their own: (count, 3, *size).

    Shapes and colours are the same at every size and for every count, so what was calibrated at one size
    is calibrated at the others.
    """
    rng = torch.Generator().manual_seed(0)
    shapes = torch.randn(64, 3, 5, 5, generator=rng)[:count]
    colours = torch.randn(64, 3, 1, 1, generator=rng)[:count]
    noise = torch.randn(count, 3, *size, generator=rng)
    return nn.functional.interpolate(shapes, size, mode="bilinear") + colours + 0.3 * noise


def perturb(net: nn.Module, sizes: Iterable[tuple[int, int]]) -> None:
    """Give every norm statistics and factors that are none of its defaults, and every bias a value.

    The statistics come from images, and are then moved a little: with arbitrary ones the signal of a deep
    network with random weights fades or explodes, and its logits compare nothing.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.normal_(0.0, 0.1)
        for norm in norms:
            norm.momentum = None  # the plain average over all sizes
            norm.reset_running_stats()
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.normal_(0.0, 0.2)
        net.train()
        for size in sizes:
            net(images(8, size))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            mean.add_(0.05 * variance.sqrt() * torch.randn_like(mean))
            variance.mul_(torch.empty_like(variance).uniform_(0.9, 1.2))


def ours_like(theirs: nn.Module, name: str, *, padding: Padding) -> Network:
    """Our network of a name, with the norm's epsilon of theirs, and their weights."""
    eps = {module.eps for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)}
    assert len(eps) == 1
    ours = build_network(name, padding=padding, norm_eps=eps.pop()).eval()
    copy_by_position(theirs, ours)
    return ours


def copy_by_position(source: nn.Module, target: nn.Module) -> None:
    """Copy a state dict: the names differ, order and shapes must not."""
    old, new = source.state_dict(), target.state_dict()
    assert [tuple(tensor.shape) for tensor in old.values()] == [
        tuple(tensor.shape) for tensor in new.values()
    ]
    target.load_state_dict(dict(zip(new, old.values(), strict=True)))


def stages_of(theirs: nn.Module, ours: Network) -> list[nn.Module]:
    """The modules of theirs whose outputs are our stages' outputs."""
    net: Any = theirs
    layers = [stage.num_layers for stage in ours.spec.stages]
    if hasattr(net, "layer1"):
        return [net.layer1, net.layer2, net.layer3, net.layer4]
    if hasattr(net, "blocks"):
        return list(net.blocks)
    body = list(net.features)[1:-1]
    if len(body) == len(layers):
        return body
    ends = [sum(layers[: index + 1]) - 1 for index in range(len(layers))]
    return [body[end] for end in ends]


def run_with_stages(net: nn.Module, stages: Iterable[nn.Module], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits of a network and the outputs of some of its modules."""
    outputs: list[Tensor] = []
    hooks = [
        # A copy: the next layer may work in place.
        stage.register_forward_hook(lambda _module, _input, output: outputs.append(output.clone()))
        for stage in stages
    ]
    with torch.no_grad():
        logits = net(x)
    for hook in hooks:
        hook.remove()
    return logits, outputs


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a fraction of the largest value of the reference."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())
