"""Core ML over an exported package; only macOS has it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from phiscale.deploy.runtimes.messages import first_line
from phiscale.errors import MissingDependencyError, ModelDirError, require

__all__ = ["CoreMlRuntime", "why_not_here"]


def why_not_here() -> str | None:
    """Why this system cannot run a Core ML model, though every system can write one; None on macOS."""
    return None if sys.platform == "darwin" else "Core ML runs on macOS only"


class CoreMlRuntime:
    """A package with its preprocessing inside, on Core ML; one image at a time.

    Args:
        path: The ``.mlpackage`` folder.

    Raises:
        ModelDirError: The package is damaged.
        MissingDependencyError: coremltools is not installed, or this system is not macOS.
    """

    def __init__(self, path: Path) -> None:
        reason = why_not_here()
        if reason is not None:
            raise MissingDependencyError(f"{reason}; copy the model there")
        ct = require("coremltools", extra="coreml")
        try:
            self._model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.ALL)
            self._classes: list[str] = json.loads(self._model.user_defined_metadata["classes"])
        except Exception as error:  # coremltools' own exceptions share no base
            raise ModelDirError(f"cannot open {path}: {first_line(error)}; export again") from None
        self._probabilities = self._model.get_spec().description.predictedProbabilitiesName

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify images (N, H, W, C). Returns probabilities (N, K)."""
        from phiscale.deploy.exporters.coreml import INPUT

        answers = []
        for image in images:
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
            scores = self._model.predict({INPUT: picture})[self._probabilities]
            answers.append([scores[name] for name in self._classes])
        return np.asarray(answers, np.float32)
