"""OpenVINO's own format, from the ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phiscale.deploy.export_store import Export
from phiscale.deploy.exporters.folding import Array
from phiscale.deploy.exporters.onnx import write_onnx
from phiscale.deploy.exporters.toolchain import Toolchain
from phiscale.deploy.runtimes.messages import last_line
from phiscale.errors import require
from phiscale.weights.config import ModelDir

if TYPE_CHECKING:
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["TOOLCHAIN", "write_openvino"]


def write_openvino(
    model: ModelDir,
    tensors: Mapping[str, Array],
    path: Path,
    *,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as OpenVINO's ``.xml`` and ``.bin``; arguments and errors as of `write_onnx`."""
    ov = require("openvino", extra="deploy")
    between = path.with_suffix(".onnx")
    write_onnx(model, tensors, between, dynamic_size=dynamic_size)
    try:
        network = ov.Core().read_model(between)
        for key, value in (metadata or {}).items():
            network.set_rt_info(value, ["phiscale", key])
        # In full precision: half of the bytes would be half of the mantissa.
        ov.save_model(network, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(last_line(error)) from error
    finally:
        between.unlink(missing_ok=True)


def _open(export: Export) -> Runtime:
    from phiscale.deploy.runtimes.openvino import OpenVinoRuntime

    return OpenVinoRuntime(export.model_path, precision=export.precision)


TOOLCHAIN = Toolchain(
    file="model.xml",
    precisions=("fp32", "bf16"),
    packages=("onnx", "openvino"),
    write=write_openvino,
    open=_open,
)
