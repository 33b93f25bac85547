"""ExecuTorch over an exported program."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.runtimes.messages import first_line
from phiscale.errors import ModelDirError, require

__all__ = ["ExecuTorchRuntime"]


class ExecuTorchRuntime:
    """A program with its preprocessing inside, on ExecuTorch; one image at a time.

    Args:
        path: The ``.pte`` file.

    Raises:
        ModelDirError: The file is damaged.
        MissingDependencyError: executorch is not installed.
    """

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This API is experimental")
            runtime = require("executorch.runtime", extra="executorch").Runtime.get()
        try:
            # The program goes first when it is collected, and takes its methods along.
            self._program = runtime.load_program(path)
            self._forward = self._program.load_method("forward")
        except RuntimeError as error:
            raise ModelDirError(f"cannot open {path}: {first_line(error)}; export again") from None

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify images (N, H, W, C). Returns probabilities (N, K)."""
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(images))
        # The next run writes to the same memory.
        answers = [self._forward.execute([image[None]])[0].numpy().copy() for image in batch]
        return np.concatenate(answers)
