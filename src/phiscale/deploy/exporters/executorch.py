"""ExecuTorch: PyTorch on phones and boards, with XNNPACK's kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phiscale.deploy.export_store import Export
from phiscale.deploy.exporters.folding import Array
from phiscale.deploy.exporters.toolchain import Toolchain
from phiscale.errors import require
from phiscale.weights.config import ModelDir

if TYPE_CHECKING:
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["METADATA", "TOOLCHAIN", "write_executorch"]

METADATA = "metadata"


def write_executorch(
    model: ModelDir,
    tensors: Mapping[str, Array],
    path: Path,
    *,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as an ExecuTorch program, whose memory is planned for one image.

    It has two methods: ``forward``, and ``metadata``, which returns the metadata as one JSON text.

    Args:
        model: Has spec and preprocessing.
        tensors: Its weights by our names.
        path: The file.
        dynamic_size: Not possible here.
        metadata: Texts to keep in the file.

    Raises:
        ModelDirError: Height and width shall vary.
        MissingDependencyError: executorch is not installed.
        OSError: The file cannot be written.
    """
    exir = require("executorch.exir", extra="executorch")
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", extra="executorch")
    import torch

    from phiscale.deploy.exporters.module import build_module, example_images, require_fixed_size, to_text

    require_fixed_size("executorch", dynamic_size=dynamic_size)
    program = torch.export.export(build_module(model, tensors), (example_images(model.spec),), strict=True)
    lowered = exir.to_edge_transform_and_lower(
        program,
        partitioner=[xnnpack.XnnpackPartitioner()],
        constant_methods={METADATA: to_text(metadata)},
    )
    path.write_bytes(lowered.to_executorch().buffer)


def _open(export: Export) -> Runtime:
    from phiscale.deploy.runtimes.executorch import ExecuTorchRuntime

    return ExecuTorchRuntime(export.model_path)


TOOLCHAIN = Toolchain(
    file="model.pte",
    precisions=("fp32",),
    packages=("executorch",),
    write=write_executorch,
    open=_open,
)
