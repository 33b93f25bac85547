"""Core ML programs carried out with torch, since Apple's engine runs on macOS only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["load", "operations", "run"]


def load(path: Path) -> Any:
    """The program of an ``.mlpackage``, read back from disk."""
    ct = pytest.importorskip("coremltools")
    reader = pytest.importorskip("coremltools.converters.mil.frontend.milproto.load")
    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    return reader.load(spec, spec.specificationVersion, model.weights_dir).functions["main"]


def operations(program: Any) -> list[Any]:
    """What a program computes, without its constants."""
    return [operation for operation in program.operations if operation.op_type != "const"]


def run(program: Any, planes: Tensor) -> Tensor:
    """Probabilities (N, K) of planes (N, C, H, W), from 0 to 255."""
    (name,) = program.inputs
    values: dict[str, Tensor] = {name: planes}
    for operation in operations(program):
        if operation.op_type == "classify":
            return values[operation.inputs["probabilities"].name]
        arguments = {key: _value(var, values) for key, var in operation.inputs.items() if var is not None}
        values[operation.outputs[0].name] = _OPERATIONS[operation.op_type](**arguments)
    raise AssertionError("no classifier")


def _value(var: Any, values: dict[str, Tensor]) -> Any:
    if isinstance(var, list | tuple):
        return [_value(item, values) for item in var]
    if var.name in values:
        return values[var.name]
    if var.val is None or isinstance(var.val, str):
        return var.val
    value = torch.as_tensor(var.val)
    return value if value.is_floating_point() and value.ndim else value.tolist()


def _conv(
    x: Tensor,
    weight: Tensor,
    strides: list[int],
    pad_type: str,
    pad: list[int],
    dilations: list[int],
    groups: int,
    bias: Tensor | None = None,
) -> Tensor:
    assert pad_type in ("custom", "valid")
    assert dilations == [1, 1]
    top, bottom, left, right = pad if pad_type == "custom" else (0, 0, 0, 0)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, strides, groups=groups)


def _max_pool(
    x: Tensor, kernel_sizes: list[int], strides: list[int], pad_type: str, pad: list[int], ceil_mode: bool
) -> Tensor:
    assert not ceil_mode
    top, bottom, left, right = pad if pad_type == "custom" else (0, 0, 0, 0)
    padded = F.pad(x, (left, right, top, bottom), value=-torch.inf)
    return F.max_pool2d(padded, kernel_sizes, strides)


def _pad(x: Tensor, pad: list[int], mode: str, constant_val: float) -> Tensor:
    assert mode == "constant"
    pairs = [pad[index : index + 2] for index in range(0, len(pad), 2)]
    return F.pad(x, [side for pair in reversed(pairs) for side in pair], value=constant_val)


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": lambda x, y: x + y,
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    "conv": _conv,
    "linear": lambda x, weight, bias: F.linear(x, weight, bias),
    "max_pool": _max_pool,
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "real_div": lambda x, y: x / y,
    "reduce_mean": lambda x, axes, keep_dims: x.mean(axes, keepdim=keep_dims),
    "relu": lambda x: x.relu(),
    "relu6": lambda x: x.clamp(0, 6),
    "reshape": lambda x, shape: x.reshape(shape),
    "sigmoid": lambda x: x.sigmoid(),
    "sigmoid_hard": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "silu": lambda x: F.silu(x),
    "softmax": lambda x, axis: x.softmax(axis),
    "squeeze": lambda x, axes: x.squeeze(axes),
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, 0.0),
    "sub": lambda x, y: x - y,
}
