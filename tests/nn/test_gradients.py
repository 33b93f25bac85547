from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_network import TINY, norms, tiny
from torch import Tensor

from phiscale.nn.network import Network, build_network
from phiscale.spec import NetworkSpec


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "efficientnet_lite0", "mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50"]
)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    net = build_network(name, num_classes=10, drop_path=0.0, dropout=0.0)
    loss = F.cross_entropy(net(torch.randn(4, 3, 64, 64)), torch.arange(4))
    loss.backward()  # type: ignore[no-untyped-call]
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.any(), key


def one_step(net: Network, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(7)  # drop path and dropout must draw the same
    loss = F.cross_entropy(net(x), torch.arange(len(x)) % 5)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, dict(net.named_buffers())


@pytest.mark.parametrize("spec", [TINY, replace(TINY, activation="relu"), replace(TINY, padding="symmetric")])
def test_checkpointing_changes_nothing_but_memory(spec: NetworkSpec) -> None:
    torch.manual_seed(0)
    plain = Network(spec)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for step in range(2):
        x = torch.randn(6, 3, 32, 32)
        loss, gradients, buffers = one_step(plain, x)
        loss_too, gradients_too, buffers_too = one_step(saving, x)
        torch.testing.assert_close(loss_too, loss, rtol=0, atol=0)
        assert gradients_too.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradients_too[name], gradient, rtol=0, atol=0, msg=name)
        # A block that runs twice must not count its batch twice.
        for name, buffer in buffers.items():
            torch.testing.assert_close(buffers_too[name], buffer, rtol=0, atol=0, msg=name)
        assert all(int(norm.num_batches_tracked or 0) == step + 1 for norm in norms(saving))
    assert {norm.momentum for norm in norms(saving)} == {spec.norm_momentum}


def test_checkpointing_is_for_training_only() -> None:
    net = tiny()
    net.set_grad_checkpointing()
    x = torch.randn(2, 3, 32, 32)
    plain = net.eval()(x)
    net.set_grad_checkpointing(False)
    torch.testing.assert_close(net(x), plain, rtol=0, atol=0)


def test_a_network_learns() -> None:
    torch.manual_seed(0)
    net = build_network(TINY, num_classes=2, norm_momentum=0.1)
    x = torch.randn(16, 3, 32, 32)
    y = torch.arange(16) % 2
    x[y == 1, 0] += 1.0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        assert int((net.eval()(x).argmax(1) == y).sum()) >= 15
