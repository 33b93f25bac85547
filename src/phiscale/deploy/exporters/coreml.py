"""Core ML, for Apple's devices."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phiscale.deploy.export_store import Export
from phiscale.deploy.exporters.folding import Array
from phiscale.deploy.exporters.toolchain import Toolchain
from phiscale.deploy.runtimes.coreml import why_not_here
from phiscale.errors import require
from phiscale.weights.config import ModelDir

if TYPE_CHECKING:
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["INPUT", "TOOLCHAIN", "write_coreml"]

INPUT = "image"


def write_coreml(
    model: ModelDir,
    tensors: Mapping[str, Array],
    path: Path,
    *,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as an ``.mlpackage``, a folder, for iOS 16 and macOS 13 or later.

    It is a classifier in Core ML's sense: it takes one image, not an array, and gives the label and the
    probability of every class by its name.

    Args:
        model: Has spec, class names and preprocessing.
        tensors: Its weights by our names.
        path: The folder.
        dynamic_size: Not possible here.
        metadata: Texts to keep in the package, as user-defined metadata.

    Raises:
        ModelDirError: Height and width shall vary.
        MissingDependencyError: coremltools is not installed.
        OSError: The folder cannot be written.
    """
    # On import it says which versions of other packages it has not been tested with.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    ct = require("coremltools", extra="coreml")
    import torch

    from phiscale.deploy.exporters.module import FromPlanes, build_module, require_fixed_size

    require_fixed_size("coreml", dynamic_size=dynamic_size)
    grey = model.spec.in_channels == 1
    # Core ML hands over the planes of its image, from 0 to 255.
    planes = torch.zeros(1, model.spec.in_channels, *model.spec.image_size)
    program = torch.export.export(FromPlanes(build_module(model, tensors)), (planes,), strict=True)
    package = ct.convert(
        program.run_decompositions({}),
        inputs=[
            ct.ImageType(
                name=INPUT,
                shape=tuple(planes.shape),
                color_layout=ct.colorlayout.GRAYSCALE if grey else ct.colorlayout.RGB,
            )
        ],
        classifier_config=ct.ClassifierConfig(list(model.classes)),
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    )
    package.user_defined_metadata.update(metadata or {})
    package.save(str(path))


def _open(export: Export) -> Runtime:
    from phiscale.deploy.runtimes.coreml import CoreMlRuntime

    return CoreMlRuntime(export.model_path)


TOOLCHAIN = Toolchain(
    file="model.mlpackage",
    precisions=("fp32",),
    packages=("coremltools",),
    write=write_coreml,
    open=_open,
    why_not_here=why_not_here,
)
