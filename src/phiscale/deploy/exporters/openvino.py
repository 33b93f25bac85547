"""OpenVINO's own format, from the ONNX graph."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from phiscale.deploy.export_store import Export, Precision
from phiscale.deploy.exporters.folding import Array
from phiscale.deploy.exporters.onnx import build_onnx
from phiscale.deploy.exporters.toolchain import Toolchain
from phiscale.deploy.runtimes.messages import last_line
from phiscale.errors import ModelDirError, require
from phiscale.weights.config import ModelDir

if TYPE_CHECKING:
    from phiscale.deploy.quantize import Quantizer
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["TOOLCHAIN", "computes_in", "convert", "pack", "save", "write_openvino"]

# From this share of an export on, its text is packed; an int8 file comes to about 30 % of fp32's there.
_PACKED_FROM = 0.1


def write_openvino(
    model: ModelDir,
    tensors: Mapping[str, Array],
    path: Path,
    *,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as OpenVINO's ``.xml`` and ``.bin``; arguments as of `write_onnx`.

    Raises:
        MissingDependencyError: onnx or openvino is not installed.
        OSError: It cannot be written.
    """
    network = convert(build_onnx(model, tensors, dynamic_size=dynamic_size))
    for key, value in (metadata or {}).items():
        network.set_rt_info(value, ["phiscale", key])
    save(network, path)


def convert(graph: Any) -> Any:
    """An ``openvino.Model`` of a graph from `build_onnx`, constants folded and every Swish one operation.

    Raises:
        MissingDependencyError: openvino is not installed.
    """
    ov = require("openvino", extra="deploy")
    passes = require("openvino.passes", extra="deploy")
    network = ov.Core().read_model(graph.SerializeToString())
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(network)
    _fuse_swish(network, ov.opset8)
    return network


def _fuse_swish(network: Any, opset: Any) -> None:
    """Make x · sigmoid(x) one operation.

    OpenVINO does so too when it compiles, but between the two halves quantisation would put a rounding of
    its own, which then keeps them apart: int8 would be slower than fp32 and twice as far from it.
    """
    for node in network.get_ordered_ops():
        name = node.get_friendly_name()
        if name.endswith("/swish"):  # as the graph is written: x times the sigmoid of x
            swish = opset.swish(node.input_value(0))
            swish.set_friendly_name(name)
            node.output(0).replace(swish.output(0))


def save(network: Any, path: Path) -> None:
    """Write an ``openvino.Model`` as ``.xml`` and ``.bin``.

    Raises:
        OSError: It cannot be written.
    """
    ov = require("openvino", extra="deploy")
    try:
        # In full precision: half of the bytes would be half of the mantissa.
        ov.save_model(network, path, compress_to_fp16=False)
    except RuntimeError as error:
        # A full disk is an "iostream error" to it.
        raise OSError(f"{last_line(error)}; is the disk full?") from error
    # Indentation is nearly half of the text, which in a quantised network counts.
    path.write_text(re.sub(r">\s+<", "><", path.read_text(encoding="utf-8")), encoding="utf-8")


def pack(export: Export) -> Export:
    """Pack the text of a small network.

    Text is much the same for any width, and int8 has twice as much of it: of B0 with four million parameters
    it is a twelfth of the file, and of one with 250,000 two fifths. gzip leaves a fifteenth of it, and
    ``gunzip model.xml.gz`` gives what OpenVINO's own tools read.

    Args:
        export: With its ``.xml`` and ``.bin``.

    Returns:
        The export, which opens ``model.xml.gz`` where its ``.xml`` was packed.

    Raises:
        OSError: It cannot be written.
    """
    text = export.model_path
    size = text.stat().st_size
    if size < _PACKED_FROM * (size + text.with_suffix(".bin").stat().st_size):
        return export
    packed = replace(export, file=f"{export.file}.gz")
    # Without the time in it, the same text gives the same bytes.
    packed.model_path.write_bytes(gzip.compress(text.read_bytes(), mtime=0))
    text.unlink()
    return packed


def _open(export: Export) -> Runtime:
    from phiscale.deploy.runtimes.openvino import OpenVinoRuntime

    return OpenVinoRuntime(export.model_path, precision=computes_in(export.precision))


def computes_in(precision: Precision) -> Literal["fp32", "bf16"]:
    """What the floating-point operations of an export are computed in, on this processor.

    What is left of an int8 network in floating point is faster in bfloat16, too, where there is such a thing.

    Args:
        precision: Of the export.

    Raises:
        ModelDirError: The export is in bfloat16, and this processor has none.
        MissingDependencyError: openvino is not installed.
    """
    if precision == "fp32":
        return "fp32"
    ov = require("openvino", extra="deploy")
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "bf16"
    if precision == "bf16":
        raise ModelDirError("this processor does not compute in bfloat16; take fp32 or int8")
    return "fp32"


def _quantizer(path: Path) -> Quantizer:
    from phiscale.deploy.exporters.openvino_int8 import OpenVinoQuantizer

    return OpenVinoQuantizer(path)


TOOLCHAIN = Toolchain(
    file="model.xml",
    precisions=("fp32", "bf16", "int8"),
    packages=("onnx", "openvino"),
    write=write_openvino,
    open=_open,
    quantizer=_quantizer,
    pack=pack,
)
