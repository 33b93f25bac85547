from __future__ import annotations

import torch
from tiny_network import TINY
from torch import nn

from phiscale.nn.network import Network
from phiscale.nn.recalibrate import recalibrate_norms


def _batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(count)]


def test_the_first_norm_gets_the_average_over_the_batches() -> None:
    torch.manual_seed(0)
    net, batches = Network(TINY).eval(), _batches()
    assert recalibrate_norms(net, batches) == 24
    with torch.no_grad():
        maps = [net.stem.conv(batch) for batch in batches]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    variance = torch.stack([m.var((0, 2, 3), unbiased=True) for m in maps]).mean(0)
    torch.testing.assert_close(net.stem.norm.running_mean, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(net.stem.norm.running_var, variance, rtol=1e-4, atol=1e-6)


def test_features_are_normalised_afterwards() -> None:
    torch.manual_seed(0)
    net = Network(TINY).eval()
    with torch.no_grad():
        net.stem.conv.weight.mul_(1000.0)  # what the stored statistics know nothing of
        batch = _batches(1)[0]
        before = net.stem.norm(net.stem.conv(batch)).std()
        recalibrate_norms(net, [batch])
        after = net.stem.norm(net.stem.conv(batch)).std()
    assert before > 100
    assert 0.9 < after < 1.1


def test_nothing_else_changes() -> None:
    torch.manual_seed(0)
    net = Network(TINY).train()
    net.stages[0].eval()
    modes = [module.training for module in net.modules()]
    momenta = [module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    parameters = [parameter.clone() for parameter in net.parameters()]
    recalibrate_norms(net, _batches())
    assert modes == [module.training for module in net.modules()]
    assert momenta == [module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(torch.equal(old, new) for old, new in zip(parameters, net.parameters(), strict=True))


def test_no_images_change_nothing() -> None:
    net = Network(TINY)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert recalibrate_norms(net, []) == 0
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
