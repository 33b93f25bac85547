"""LiteRT, formerly TensorFlow Lite."""

from __future__ import annotations

import contextlib
import sys
import zipfile
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

__all__ = ["LABELS", "METADATA", "TOOLCHAIN", "write_litert"]

METADATA, LABELS = "metadata.json", "labels.txt"


def write_litert(
    model: ModelDir,
    tensors: Mapping[str, Array],
    path: Path,
    *,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as a ``.tflite`` file for one image at a time.

    Class names and metadata are packed behind the network as TensorFlow Lite packs associated files: the
    model is a ZIP archive too, with ``labels.txt`` and ``metadata.json``.

    Args:
        model: Has spec, class names and preprocessing.
        tensors: Its weights by our names.
        path: The file.
        dynamic_size: Not possible here.
        metadata: Texts to keep in the file.

    Raises:
        ModelDirError: Height and width shall vary.
        MissingDependencyError: litert-torch is not installed.
        OSError: The file cannot be written.
    """
    litert_torch = require("litert_torch", extra="litert")

    from phiscale.deploy.exporters.module import build_module, example_images, require_fixed_size, to_text

    require_fixed_size("litert", dynamic_size=dynamic_size)
    # Its progress goes to standard output, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        edge = litert_torch.convert(
            build_module(model, tensors), sample_kwargs={"images": example_images(model.spec)}
        )
        edge.export(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LABELS, "".join(f"{name}\n" for name in model.classes))
        archive.writestr(METADATA, to_text(metadata))


def _open(export: Export) -> Runtime:
    from phiscale.deploy.runtimes.litert import LiteRtRuntime

    return LiteRtRuntime(export.model_path)


TOOLCHAIN = Toolchain(
    file="model.tflite",
    precisions=("fp32",),
    packages=("litert-torch", "ai-edge-litert"),
    write=write_litert,
    open=_open,
)
