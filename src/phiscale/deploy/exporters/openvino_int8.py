"""Networks of OpenVINO in int8, by NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.exporters.openvino import save
from phiscale.deploy.runtimes.messages import first_line
from phiscale.errors import ModelDirError, require

__all__ = ["OpenVinoQuantizer", "quiet_nncf"]

_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
_BETWEEN = ("/sum", "/gated", "pooled")  # what `onnx_graph` calls the other operations that NNCF rounds
_SQUEEZE_EXCITE = "squeeze-excite"
_NO_TELEMETRY = "NNCF_CI"  # set while NNCF is imported, it has NNCF send nothing


class OpenVinoQuantizer:
    """A network that `phiscale.deploy.exporters.openvino.save` wrote, to be quantised as often as wanted.

    Convolutions and the classifier are quantised, and the sums of skips. Squeeze-excite stays in floating
    point, where it is as fast; only its weights are stored in 8 bits.

    Args:
        path: The ``.xml`` file.

    Raises:
        MissingDependencyError: nncf is not installed.
    """

    def __init__(self, path: Path) -> None:
        with quiet_nncf():
            pass  # a missing package is said before the work begins
        self._path = path
        self._layers: dict[str, list[str]] = defaultdict(list)
        for node in self._read().get_ordered_ops():
            name = node.get_friendly_name()
            if node.get_type_name() in _WEIGHTED or name.endswith(_BETWEEN):
                self._layers[_group(name)].append(name)

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions whose versions an export notes."""
        return ("nncf",)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of layers that can be left in floating point."""
        return tuple(group for group in self._layers if group != _SQUEEZE_EXCITE)

    def __call__(
        self,
        path: Path,
        images: NDArray[np.uint8],
        *,
        kept: tuple[str, ...] = (),
        on_image: Callable[[int], None] | None = None,
    ) -> None:
        """Write the network, quantised; arguments and errors as of `phiscale.deploy.quantize.Quantizer`."""
        network = self._read()
        floating = [layer for group in kept for layer in self._layers[group]]
        with quiet_nncf() as nncf:
            try:
                quantized = nncf.quantize(
                    network,
                    nncf.Dataset(_Counted(images, on_image)),
                    # Swish has a short negative side: symmetric ranges would waste half of their steps on it.
                    preset=nncf.QuantizationPreset.MIXED,
                    subset_size=len(images),
                    ignored_scope=nncf.IgnoredScope(names=[*floating, *self._layers[_SQUEEZE_EXCITE]]),
                )
            except Exception as error:  # NNCF's own exceptions share no base with OpenVINO's
                raise ModelDirError(f"NNCF cannot quantise this network: {first_line(error)}") from None
        _share_limits(quantized)
        _store_in_half(quantized, set(floating))
        _store_in_bytes(quantized, set(self._layers[_SQUEEZE_EXCITE]))
        save(quantized, path)

    def _read(self) -> Any:
        return require("openvino", extra="deploy").Core().read_model(self._path)


class _Counted:
    """Batches of one image, which say how many of them were taken."""

    def __init__(self, images: NDArray[np.uint8], on_image: Callable[[int], None] | None) -> None:
        self._images = images
        self._on_image = on_image

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for index in range(len(self._images)):
            if self._on_image is not None:
                self._on_image(index + 1)
            yield self._images[index : index + 1]


def _group(layer: str) -> str:
    """The group of an operation, such as ``stages.2.0.depthwise/WithoutBiases``."""
    name = layer.partition("/")[0]
    if re.search(r"\.se\b", name):
        return _SQUEEZE_EXCITE
    if name in ("logits", "pooled"):
        return "classifier"
    stage = re.match(r"stages\.(\d+)\.", name)
    if stage is None:
        return name
    return f"stage {int(stage[1]) + 1} {'depthwise' if name.endswith('.depthwise') else 'dense'}"


def _share_limits(network: Any) -> None:
    """Store the limits of a rounding once where its input's are its output's; it makes the file smaller."""
    for node in network.get_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        for limit, same in ((1, 3), (2, 4)):
            one, other = (node.input_value(index).get_node() for index in (limit, same))
            if one.get_type_name() == other.get_type_name() == "Constant" and np.array_equal(
                one.data, other.data
            ):
                node.input(same).replace_source_output(one.output(0))


def _weighted(network: Any, layers: set[str]) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Those of some layers that have weights, and the weights."""
    for node in network.get_ordered_ops():
        if node.get_friendly_name() in layers and node.get_type_name() in _WEIGHTED:
            constant = node.input_value(1).get_node()
            if constant.get_type_name() == "Constant":
                yield node, constant.data


def _store_in_half(network: Any, layers: set[str]) -> None:
    """Store the weights of some layers as float16; they are computed with in float32 or bfloat16."""
    opset = require("openvino", extra="deploy").opset8
    for node, weight in _weighted(network, layers):
        if np.abs(weight).max() < np.finfo(np.float16).max:
            half = opset.constant(weight.astype(np.float16))
            node.input(1).replace_source_output(opset.convert(half, "f32").output(0))


def _store_in_bytes(network: Any, layers: set[str]) -> None:
    """Store the weights of some convolutions as int8, with a factor per output channel.

    The factor comes after the convolution. Between the weights and the convolution, where
    ``nncf.compress_weights`` puts it, OpenVINO 2026.4 answers wrongly as soon as there are two streams.
    """
    opset = require("openvino", extra="deploy").opset8
    for node, weight in _weighted(network, layers):
        consumers = node.output(0).get_target_inputs()
        factor = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
        factor[factor == 0] = 1
        stored = opset.constant(np.round(weight / factor).astype(np.int8))
        node.input(1).replace_source_output(opset.convert(stored, "f32").output(0))
        scaled = opset.multiply(node.output(0), opset.constant(factor.reshape(1, -1, 1, 1)))
        for consumer in consumers:
            consumer.replace_source_output(scaled.output(0))


@contextlib.contextmanager
def quiet_nncf() -> Iterator[ModuleType]:
    """NNCF, which here neither prints, nor logs, nor warns, nor reports its use to anybody.

    Raises:
        MissingDependencyError: It is not installed.
    """
    # It loads a part of torch that complains where there is no GPU.
    with _errors_only("torch.utils.cpp_extension"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nncf = _import_nncf()
        with _errors_only("nncf"), contextlib.redirect_stdout(io.StringIO()):
            yield nncf


def _import_nncf() -> ModuleType:
    loggers, before = logging.getLoggerClass(), os.environ.get(_NO_TELEMETRY)
    os.environ[_NO_TELEMETRY] = "1"
    try:
        return require("nncf", extra="deploy")
    finally:
        if before is None:
            del os.environ[_NO_TELEMETRY]
        logging.setLoggerClass(loggers)  # NNCF puts its own in place, for everybody


@contextlib.contextmanager
def _errors_only(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
