"""The fast layers compute what the plain ones do, and leave no trace."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_training import SPEC

from phiscale.nn.layers import ConvNormAct, LayerOptions, SqueezeExcite, pad_same, same_pads
from phiscale.nn.network import Network, build_network
from phiscale.training.fast_layers import FastConvNormAct, FastSqueezeExcite, fast_layers
from phiscale.training.kernels import depthwise, norm_swish, squeeze_excite


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def results(compute: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output of a function and the gradients for its inputs, for a gradient that is no constant."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    output = compute(*leaves)
    output.backward(noise(*output.shape, seed=9, dtype=output.dtype))  # type: ignore[no-untyped-call]
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second)


# -- one layer at a time -------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
def test_norm_swish_is_norm_and_swish(momentum: float | None) -> None:
    plain = nn.BatchNorm2d(5, eps=1e-3, momentum=momentum, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(noise(5, seed=1))
        plain.bias.copy_(noise(5, seed=2))
    fast = copy.deepcopy(plain)
    for seed in range(2):  # the running statistics move twice
        x = noise(3, 5, 4, 6, seed=seed) * 3 + 1
        assert_equal(results(lambda x: norm_swish(x, fast), x), results(lambda x: F.silu(plain(x)), x))
        assert_equal([p.grad for p in fast.parameters()], [p.grad for p in plain.parameters()])  # type: ignore[misc]
    assert_equal(list(fast.buffers()), list(plain.buffers()))


class Activated(nn.Module):
    """`norm_swish` as a module, whose parameters can be given from outside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return norm_swish(x, self.norm)


def test_norm_swish_passes_gradcheck() -> None:
    module = Activated(3)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def compute(x: Tensor, *values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return result

    assert torch.autograd.gradcheck(compute, (noise(2, 3, 2, 3).requires_grad_(), *parameters))


KERNELS = [(1, 1), (2, 2), (3, 3), (5, 5), (7, 7), (3, 5), (5, 2), (1, 6)]
STRIDES = [(1, 1), (2, 2), (3, 1)]


@pytest.mark.parametrize("size", [(9, 8), (8, 11)])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stride", STRIDES)
def test_depthwise_is_a_convolution(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    x, weight, bias = noise(2, 4, *size), noise(4, 1, *kernel, seed=1), noise(4, seed=2)
    same = same_pads(size, kernel, stride)
    half = (kernel[0] // 2, kernel[1] // 2)
    symmetric = (half[1], half[1], half[0], half[0])

    def plain_same(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(pad_same(x, kernel, stride), weight, bias, stride, groups=4)

    def plain_symmetric(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, stride, half, groups=4)

    assert_equal(
        results(lambda x, weight, bias: depthwise(x, weight, bias, stride, same), x, weight, bias),
        results(plain_same, x, weight, bias),
    )
    assert_equal(
        results(lambda x, weight: depthwise(x, weight, None, stride, symmetric), x, weight),
        results(plain_symmetric, x, weight),
    )


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_depthwise_passes_gradcheck(stride: tuple[int, int]) -> None:
    x, weight = noise(1, 2, 5, 6).requires_grad_(), noise(2, 1, 5, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: depthwise(x, w, None, stride, (1, 2, 1, 2)), (x, weight))


def test_squeeze_excite_is_the_layer() -> None:
    inputs = (noise(3, 6, 4, 5), *(noise(*shape, seed=1) for shape in ((2, 6), (2,), (6, 2), (6,))))

    def plain(x: Tensor, reduce: Tensor, reduce_bias: Tensor, expand: Tensor, expand_bias: Tensor) -> Tensor:
        squeezed = F.silu(F.linear(x.mean((2, 3)), reduce, reduce_bias))
        return x * F.linear(squeezed, expand, expand_bias).sigmoid()[:, :, None, None]

    def fast(x: Tensor, reduce: Tensor, reduce_bias: Tensor, expand: Tensor, expand_bias: Tensor) -> Tensor:
        return squeeze_excite(x, (reduce, reduce_bias), (expand, expand_bias))

    assert_equal(results(fast, *inputs), results(plain, *inputs))
    assert torch.autograd.gradcheck(fast, tuple(value.requires_grad_() for value in inputs))


# -- a whole network -----------------------------------------------------------------------------------


def run_network(net: Network, x: Tensor, *, fast: bool, autocast: bool = False) -> dict[str, Tensor]:
    """Logits, gradients and buffers of one step, by name."""
    net = copy.deepcopy(net)
    torch.manual_seed(0)  # dropout and drop path
    with fast_layers(net, enabled=fast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = net(x).to(x.dtype)
        loss = F.cross_entropy(logits, torch.arange(len(x)) % net.spec.num_classes)
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(net.parameters()))
    return {"logits": logits.detach(), **gradients, **dict(net.named_buffers())}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"padding": "symmetric"},
        {"bias": True},
        {"activation": "hard_swish"},
        {"activation": "relu6"},
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_network_computes_the_same(changes: dict[str, object], checkpointing: bool) -> None:
    net = build_network(SPEC, **changes).double()  # type: ignore[arg-type]
    net.set_grad_checkpointing(checkpointing)
    x = noise(4, 3, 33, 30)
    plain, fast = (run_network(net, x, fast=enabled) for enabled in (False, True))
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, msg=name)


@pytest.mark.parametrize("model", ["mobilenet_v1", "resnet18"])
def test_other_families_compute_the_same(model: str) -> None:
    net = build_network(model, num_classes=3).double()
    x = noise(2, 3, 32, 32)
    plain, fast = (run_network(net, x, fast=enabled) for enabled in (False, True))
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, msg=name)


def test_bfloat16_is_as_near_to_float32_as_torchs_own() -> None:
    net = build_network(SPEC)
    x = noise(32, 3, 32, 32, dtype=torch.float32)
    exact = run_network(net, x, fast=False)
    theirs = run_network(net, x, fast=False, autocast=True)
    ours = run_network(net, x, fast=True, autocast=True)
    errors = []
    for found in (theirs, ours):
        apart = sum(float((found[n] - exact[n]).float().square().sum()) for n in exact)
        errors.append((apart / sum(float(exact[n].float().square().sum()) for n in exact)) ** 0.5)
    assert 0 < errors[1] < 1.2 * errors[0]


def test_no_trace_is_left() -> None:
    net = build_network(SPEC)
    names, kinds = list(net.state_dict()), [type(module) for module in net.modules()]
    with fast_layers(net):
        assert list(net.state_dict()) == names
        fast = {type(module) for module in net.modules()}
        assert fast >= {FastConvNormAct, FastSqueezeExcite}
        assert not {ConvNormAct, SqueezeExcite} & fast
        copied = pickle.loads(pickle.dumps(copy.deepcopy(net)))  # the moving average is a copy
        assert list(copied.state_dict()) == names
    assert [type(module) for module in net.modules()] == kinds
    with contextlib.suppress(KeyError), fast_layers(net):
        raise KeyError
    assert [type(module) for module in net.modules()] == kinds


def test_eval_mode_is_untouched() -> None:
    net = build_network(SPEC).eval()
    x = noise(2, 3, 32, 32, dtype=torch.float32)
    with torch.inference_mode():
        plain = net(x)
        with fast_layers(net):
            assert torch.equal(net(x), plain)


def test_less_is_kept_for_the_backward_pass() -> None:
    layer = ConvNormAct(4, 8, 3, options=LayerOptions())
    kept: dict[bool, int] = {}
    for enabled in (False, True):
        sizes: dict[int, int] = {}

        def pack(value: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[value.data_ptr()] = value.numel()
            return value

        with fast_layers(layer, enabled=enabled), torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
            layer(noise(2, 4, 16, 16, dtype=torch.float32).requires_grad_())
        kept[enabled] = sum(size == 2 * 8 * 16 * 16 for size in sizes.values())
    # The inputs of norm and Swish, or that of the norm alone; Swish's output is for the next layer to keep.
    assert kept == {False: 2, True: 1}
