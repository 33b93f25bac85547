"""torch.export, and AOTInductor's native code where there is a C++ compiler."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiscale.deploy.export_store import Export
from phiscale.deploy.exporters.folding import Array
from phiscale.deploy.exporters.toolchain import Toolchain
from phiscale.deploy.runtimes.messages import first_line
from phiscale.errors import ModelDirError
from phiscale.spec import NetworkSpec
from phiscale.weights.config import ModelDir

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["TOOLCHAIN", "write_torch"]

logger = logging.getLogger("phiscale.deploy")

METADATA = "metadata.json"


def write_torch(
    model: ModelDir,
    tensors: Mapping[str, Array],
    path: Path,
    *,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as ``model.pt2`` for `torch.export.load`, and compiled for this machine beside it.

    The metadata is the extra file ``metadata.json`` of the first, and the AOTInductor metadata of the second.
    Without a C++ compiler there is only the first. Both are vouched for, so that they open here.

    Args:
        model: Has spec and preprocessing.
        tensors: Its weights by our names.
        path: The file.
        dynamic_size: Whether height and width may vary.
        metadata: Texts to keep in the files.

    Raises:
        OSError: A file cannot be written.
    """
    import torch

    from phiscale.deploy.exporters.module import to_text
    from phiscale.deploy.runtimes.inductor import COMPILED, vouch

    program = _program(model, tensors, dynamic_size=dynamic_size)
    content = io.BytesIO()
    # Through memory: torch's own writer says RuntimeError when the disk is full.
    torch.export.save(program, content, extra_files={METADATA: to_text(metadata)})
    path.write_bytes(content.getbuffer())
    vouch(path)
    compiled = path.with_name(COMPILED)
    if _compile(program, compiled, metadata or {}):
        vouch(compiled)


def _program(model: ModelDir, tensors: Mapping[str, Array], *, dynamic_size: bool) -> ExportedProgram:
    import torch
    from torch.export import Dim

    from phiscale.deploy.exporters.module import build_module, example_images

    module = build_module(model, tensors)
    free: dict[int, Any] = {0: Dim("batch", min=1)}
    if dynamic_size:
        least = _least_side(model.spec)
        # Named dimensions would have to satisfy every stride's guard in a form that torch can solve.
        free |= {side: Dim.DYNAMIC(min=least) for side in (1, 2)}
    # Two images: torch.export takes a batch of one for a constant.
    images = example_images(model.spec, batch=2)
    return torch.export.export(module, (images,), dynamic_shapes={"images": free}, strict=False)


def _least_side(spec: NetworkSpec) -> int:
    """Pixels of a side that may vary: torch.export takes a last map of one pixel for a constant.

    Raises:
        ModelDirError: The network's own images end in such a map.
    """
    least = spec.output_stride + 1
    if min(spec.image_size) < least:
        raise ModelDirError(
            f"torch exports a free image size only from {least} px on, and {spec.name} takes "
            f"{spec.image_size[0]}×{spec.image_size[1]}; leave --dynamic-size out, or export onnx"
        )
    return least


def _compile(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> bool:
    """Compile a program with AOTInductor. Returns whether that worked."""
    import torch._inductor

    options: dict[str, Any] = {
        "freezing": True,  # weights are packed for oneDNN, which fuses activations too
        "cpp.dynamic_threads": True,  # as many as the process that runs it may use, not this one
        "aot_inductor.metadata": dict(metadata),
    }
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except Exception as error:  # no compiler, or an old one: Inductor's errors share no base
        path.unlink(missing_ok=True)
        logger.warning(
            "not compiled, so PyTorch runs %s by itself, slower: %s", TOOLCHAIN.file, first_line(error)
        )
        return False
    return True


def _open(export: Export) -> Runtime:
    from phiscale.deploy.runtimes.inductor import InductorRuntime

    return InductorRuntime(export.model_path, image_size=export.image_size)


TOOLCHAIN = Toolchain(
    file="model.pt2",
    precisions=("fp32",),
    packages=("torch",),
    write=write_torch,
    open=_open,
)
