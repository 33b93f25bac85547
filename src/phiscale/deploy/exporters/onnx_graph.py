"""From a spec and its weights to an ONNX graph, without torch.

A spec says all there is to a network, so the graph is written from it as the torch network is built from
it, operator by operator. Norms are folded, and TensorFlow's "SAME" padding is the convolutions' own:
explicit pads where the image size is fixed, ``SAME_UPPER``, which is the same rule, where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from phiscale.deploy.exporters.folding import Array, folded
from phiscale.preprocess import Preprocess
from phiscale.spec import BlockSpec, NetworkSpec

__all__ = ["INPUT", "OPSET", "OUTPUT", "build_graph"]

OPSET = 17
IR_VERSION = 8  # what opset 17 came with; older runtimes read it too
INPUT, OUTPUT = "images", "probabilities"


def build_graph(
    spec: NetworkSpec,
    tensors: Mapping[str, Array],
    *,
    preprocess: Preprocess | None = None,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Write the graph of a network.

    Args:
        spec: The network.
        tensors: Its parameters and statistics by our names.
        preprocess: Where given, its normalisation is in the graph: the input ``images`` is uint8
            (N, H, W, C) and the output ``probabilities``. Where not, the input ``input`` is float32
            (N, C, H, W), prepared, and the output ``logits``.
        dynamic_size: Whether height and width may vary; otherwise they are the spec's.
        metadata: Texts to keep in the file.

    Returns:
        A checked model with a dynamic batch.
    """
    graph = _Graph(spec=spec, weights=folded(tensors, eps=spec.norm_eps), dynamic_size=dynamic_size)
    x, source = graph.begin(preprocess)
    x = graph.trunk(x)
    logits = graph.classify(x)
    output = graph.add("Softmax", [logits], name=OUTPUT, axis=1) if preprocess else logits
    result = helper.make_tensor_value_info(
        output, TensorProto.FLOAT, ["N", spec.num_classes or spec.num_features]
    )
    model = helper.make_model(
        helper.make_graph(graph.nodes, spec.name, [source], [result], graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="phiscale",
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


@dataclass(kw_only=True)
class _Graph:
    """Nodes and constants so far; a value is known by the name of the node that makes it."""

    spec: NetworkSpec
    weights: dict[str, Array]
    dynamic_size: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, kind: str, inputs: list[str], *, name: str, **attributes: Any) -> str:
        """Append a node with one output, which has its name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.sizes[name] = self.sizes.get(inputs[0], self.spec.image_size)
        return name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Store a constant."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    # ---- ends ----

    def begin(self, preprocess: Preprocess | None) -> tuple[str, onnx.ValueInfoProto]:
        """The input, and the prepared image (N, C, H, W)."""
        channels = self.spec.in_channels
        height, width = ("H", "W") if self.dynamic_size else self.spec.image_size
        if preprocess is None:
            info = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", channels, height, width])
            return "input", info
        info = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", height, width, channels])
        x = self.add("Cast", [INPUT], name="cast", to=TensorProto.FLOAT)
        x = self.add("Transpose", [x], name="nchw", perm=[0, 3, 1, 2])
        # In float64, as the torch runtime's constants are: (x - 255 · mean) / (255 · std).
        mean = np.asarray(preprocess.mean, np.float64).reshape(1, -1, 1, 1) * 255
        std = np.asarray(preprocess.std, np.float64).reshape(1, -1, 1, 1) * 255
        x = self.add("Sub", [x, self.constant("mean", mean.astype(np.float32))], name="centred")
        x = self.add("Div", [x, self.constant("std", std.astype(np.float32))], name="normalized")
        return x, info

    def trunk(self, x: str) -> str:
        """Stem, stages and head."""
        stem = self.spec.stem
        x = self.conv(x, "stem", kernel=stem.kernel_size, stride=stem.stride)
        if stem.max_pool:
            x = self._max_pool(x)
        for block in self.spec.blocks():
            x = _BLOCKS[block.stage.block](self, x, block)
        return self.conv(x, "head", kernel=1) if self.spec.head else x

    def classify(self, x: str) -> str:
        """Global average pool and, where there is one, the classifier."""
        x = self.add("GlobalAveragePool", [x], name="pooled")
        x = self.add("Flatten", [x], name="features", axis=1)
        if not self.spec.num_classes:
            return x
        return self.add("Gemm", [x, *self._weights_of("classifier")], name="logits", transB=1)

    # ---- layers ----

    def conv(
        self, x: str, name: str, *, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True
    ) -> str:
        """A convolution with its folded norm, and the network's activation."""
        inputs = [
            x,
            *(self.constant(f"{name}.{leaf}", self.weights[f"{name}.{leaf}"]) for leaf in ("weight", "bias")),
        ]
        attributes = self._window(self.sizes.get(x, self.spec.image_size), kernel, stride)
        result = self.add("Conv", inputs, name=name, group=groups, **attributes)
        self._shrink(x, result, stride)
        return self.activation(result) if activate else result

    def activation(self, x: str) -> str:
        """The network's activation."""
        match self.spec.activation:
            case "swish":
                return self.add("Mul", [x, self.add("Sigmoid", [x], name=f"{x}/sigmoid")], name=f"{x}/swish")
            case "relu":
                return self.add("Relu", [x], name=f"{x}/relu")
            case "relu6":
                bounds = [self._once("zero", 0.0), self._once("six", 6.0)]
                return self.add("Clip", [x, *bounds], name=f"{x}/relu6")
            case "hard_swish":
                return self.add("HardSwish", [x], name=f"{x}/hard_swish")

    def squeeze_excite(self, x: str, name: str) -> str:
        """Pool, squeeze, excite, multiply."""
        gate = self.add("GlobalAveragePool", [x], name=f"{name}/pooled")
        for part in ("reduce", "expand"):
            inputs = [gate, *self._weights_of(f"{name}.{part}")]
            gate = self.add("Conv", inputs, name=f"{name}.{part}", kernel_shape=[1, 1])
            gate = self.activation(gate) if part == "reduce" else gate
        gate = self.add("Sigmoid", [gate], name=f"{name}/gate")
        return self.add("Mul", [x, gate], name=f"{name}/gated")

    def _weights_of(self, name: str) -> list[str]:
        names = [f"{name}.{leaf}" for leaf in ("weight", "bias")]
        return [self.constant(constant, self.weights[constant]) for constant in names]

    def _max_pool(self, x: str) -> str:
        attributes = self._window(self.sizes[x], 3, 2)
        result = self.add("MaxPool", [x], name="pool", **attributes)
        self._shrink(x, result, 2)
        return result

    def _window(self, size: tuple[int, int], kernel: int, stride: int) -> dict[str, Any]:
        """Kernel, strides and padding of a convolution or a pool."""
        attributes: dict[str, Any] = {"kernel_shape": [kernel, kernel], "strides": [stride, stride]}
        if self.spec.padding == "symmetric":
            return {**attributes, "pads": [kernel // 2] * 4}
        if self.dynamic_size:
            return {**attributes, "auto_pad": "SAME_UPPER"}
        totals = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in size]
        before = [total // 2 for total in totals]
        return {**attributes, "pads": [*before, *(t - b for t, b in zip(totals, before, strict=True))]}

    def _shrink(self, x: str, result: str, stride: int) -> None:
        height, width = self.sizes.get(x, self.spec.image_size)
        self.sizes[result] = (-(-height // stride), -(-width // stride))

    def _once(self, name: str, value: float) -> str:
        if all(tensor.name != name for tensor in self.initializers):
            self.constant(name, np.asarray(value, np.float32))
        return name


def _prefix(block: BlockSpec) -> str:
    return f"stages.{block.stage_index}.{block.layer_index}"


def _mbconv(graph: _Graph, x: str, block: BlockSpec) -> str:
    name, shortcut, stage = _prefix(block), x, block.stage
    if stage.expand_ratio != 1:
        x = graph.conv(x, f"{name}.expand", kernel=1)
    x = graph.conv(
        x,
        f"{name}.depthwise",
        kernel=stage.kernel_size,
        stride=block.stride,
        groups=block.expanded_channels,
    )
    if block.se_channels:
        x = graph.squeeze_excite(x, f"{name}.se")
    x = graph.conv(x, f"{name}.project", kernel=1, activate=False)
    return graph.add("Add", [x, shortcut], name=f"{name}/sum") if block.has_skip else x


def _separable(graph: _Graph, x: str, block: BlockSpec) -> str:
    name = _prefix(block)
    x = graph.conv(
        x,
        f"{name}.depthwise",
        kernel=block.stage.kernel_size,
        stride=block.stride,
        groups=block.in_channels,
    )
    return graph.conv(x, f"{name}.pointwise", kernel=1)


def _residual(graph: _Graph, x: str, block: BlockSpec) -> str:
    """ResNet's blocks: add first, then activate."""
    name, shortcut, kernel = _prefix(block), x, block.stage.kernel_size
    if not block.has_skip:
        shortcut = graph.conv(x, f"{name}.shortcut", kernel=1, stride=block.stride, activate=False)
    if block.stage.block == "bottleneck":
        x = graph.conv(x, f"{name}.reduce", kernel=1)
        x = graph.conv(x, f"{name}.conv", kernel=kernel, stride=block.stride)
        x = graph.conv(x, f"{name}.expand", kernel=1, activate=False)
    else:
        x = graph.conv(x, f"{name}.conv1", kernel=kernel, stride=block.stride)
        x = graph.conv(x, f"{name}.conv2", kernel=kernel, activate=False)
    return graph.activation(graph.add("Add", [x, shortcut], name=f"{name}/sum"))


_BLOCKS = {
    "mbconv": _mbconv,
    "depthwise_separable": _separable,
    "bottleneck": _residual,
    "basic": _residual,
}
