"""Batch norm of several processes is batch norm of their whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_network import tiny
from torch import Tensor, nn

from phiscale.nn.sync_norm import SyncBatchNorm2d, synchronized_norms
from process_group import run_together

BATCH = 7
PARTS = {2: ((0, 3), (3, 7)), 3: ((0, 1), (1, 4), (4, 7))}  # of different sizes, one of a single image
MOMENTA = (0.1, None)


def images() -> Tensor:
    """(7, 4, 5, 5), with means that are large beside the spread, as sums of squares do not bear."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 0.1, 3.0, 1e-2], dtype=torch.float64)[:, None, None]
    return torch.randn(BATCH, 4, 5, 5, generator=generator).double() * spread + 10.0


def make(kind: type[nn.BatchNorm2d], momentum: float | None) -> nn.BatchNorm2d:
    norm = kind(4, eps=1e-3, momentum=momentum, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, -1.5, 2.0]))
        norm.bias.copy_(torch.arange(4.0))
    return norm


def results(norm: nn.BatchNorm2d, first: int, last: int) -> dict[str, Tensor]:
    """What two steps leave behind; the gradient is that of a sum, so parts add up."""
    weights = torch.randn(BATCH, 4, 5, 5, generator=torch.Generator().manual_seed(1)).double()
    x = images()[first:last].requires_grad_()
    for _ in range(2):
        y = norm(x)
    (y * weights[first:last]).sum().backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    assert x.grad is not None
    found = {"y": y.detach(), "x.grad": x.grad, "weight.grad": norm.weight.grad, "bias.grad": norm.bias.grad}
    return {**found, **{name: value.clone() for name, value in norm.named_buffers()}}


def work(folder: Path) -> None:
    """The part of one process, written into a folder."""
    rank, count = dist.get_rank(), dist.get_world_size()
    found = [results(make(SyncBatchNorm2d, momentum), *PARTS[count][rank]) for momentum in MOMENTA]
    single = make(SyncBatchNorm2d, None).float()
    single(images()[slice(*PARTS[count][rank])].float())
    found.append(dict(single.named_buffers()))
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module", params=[2, 3])
def parts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[list[dict[str, Tensor]]]:
    """By process, then by momentum."""
    folder = tmp_path_factory.mktemp("parts")
    run_together(work, folder, count=request.param, folder=folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("index", range(len(MOMENTA)))
def test_parts_are_the_whole(index: int, parts: list[list[dict[str, Tensor]]]) -> None:
    whole = results(make(nn.BatchNorm2d, MOMENTA[index]), 0, BATCH)
    mine = [part[index] for part in parts]
    for name in ("y", "x.grad"):
        assert_same(torch.cat([part[name] for part in mine]), whole[name])
    for name in ("weight.grad", "bias.grad"):
        assert_same(torch.stack([part[name] for part in mine]).sum(0), whole[name])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        for part in mine:
            assert_same(part[name], whole[name])


def assert_same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_mean_far_from_zero_costs_no_digits(parts: list[list[dict[str, Tensor]]]) -> None:
    exact = make(nn.BatchNorm2d, None)
    exact(images())
    assert exact.running_var is not None
    for part in parts:
        torch.testing.assert_close(part[-1]["running_var"].double(), exact.running_var, rtol=1e-3, atol=0)


def test_a_network_has_its_own_norms_back() -> None:
    net = tiny()
    before, names = list(net.parameters()), list(net.state_dict())
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    with synchronized_norms(net):
        assert [name for name, m in net.named_modules() if type(m) is SyncBatchNorm2d] == norms
        assert list(net.state_dict()) == names
        net.eval()
        net.to(torch.float64)  # makes new buffers
    assert [name for name, m in net.named_modules() if type(m) is nn.BatchNorm2d] == norms
    assert all(one is other for one, other in zip(before, net.parameters(), strict=True))
    assert {value.dtype for name, value in net.named_buffers() if name.endswith("mean")} == {torch.float64}
    assert not any(module.training for module in net.modules())


def test_evaluation_needs_nobody_else() -> None:
    norm, other = (make(kind, 0.1).eval() for kind in (SyncBatchNorm2d, nn.BatchNorm2d))
    assert torch.equal(norm(images()), other(images()))
