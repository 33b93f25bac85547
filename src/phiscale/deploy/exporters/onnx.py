"""ONNX: one file for every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiscale.deploy.export_store import Export
from phiscale.deploy.exporters.folding import Array
from phiscale.deploy.exporters.toolchain import Toolchain
from phiscale.errors import require
from phiscale.weights.config import ModelDir

if TYPE_CHECKING:
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["TOOLCHAIN", "build_onnx", "write_onnx"]


def build_onnx(
    model: ModelDir,
    tensors: Mapping[str, Array],
    *,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Any:
    """A model as an ``onnx.ModelProto``, from uint8 images to probabilities.

    Args:
        model: Has spec and preprocessing.
        tensors: Its weights by our names.
        dynamic_size: Whether height and width may vary.
        metadata: Texts to keep in it.

    Raises:
        MissingDependencyError: onnx is not installed.
    """
    require("onnx", extra="deploy")
    from phiscale.deploy.exporters.onnx_graph import build_graph

    return build_graph(
        model.spec,
        tensors,
        preprocess=model.preprocess,
        dynamic_size=dynamic_size,
        metadata=metadata,
    )


def write_onnx(
    model: ModelDir,
    tensors: Mapping[str, Array],
    path: Path,
    *,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as ONNX; arguments as of `build_onnx`.

    Raises:
        MissingDependencyError: onnx is not installed.
        OSError: It cannot be written.
    """
    graph = build_onnx(model, tensors, dynamic_size=dynamic_size, metadata=metadata)
    require("onnx", extra="deploy").save(graph, path)


def _open(export: Export) -> Runtime:
    from phiscale.deploy.runtimes.onnx import OnnxRuntime

    return OnnxRuntime(export.model_path)


TOOLCHAIN = Toolchain(
    file="model.onnx",
    precisions=("fp32",),
    packages=("onnx", "onnxruntime"),
    write=write_onnx,
    open=_open,
)
