"""An exported program of torch.export, and its native code from AOTInductor where it was compiled here.

Both kinds of file can run any code when they are opened: the first may hold pickles, the second is a shared
library. So a file is opened only where it was made. `vouch` keeps its checksum in this user's cache.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phiscale.data.cache import default_cache_dir
from phiscale.deploy.runtimes.messages import first_line
from phiscale.errors import ModelDirError, ShapeError
from phiscale.weights import files

__all__ = ["COMPILED", "InductorRuntime", "vouch"]

COMPILED = "compiled.pt2"


class InductorRuntime:
    """An exported program with its preprocessing inside, on PyTorch.

    Args:
        path: The file of torch.export. The compiled one beside it is taken where it was compiled for this
            processor and this version of PyTorch.
        image_size: (height, width) that it takes, or None for any.

    Attributes:
        is_compiled: Whether the compiled one runs.

    Raises:
        ModelDirError: The file is damaged, or was not made by this user on this machine.
    """

    def __init__(self, path: Path, *, image_size: tuple[int, int] | None = None) -> None:
        self._image_size = image_size
        compiled = path.with_name(COMPILED)
        self.is_compiled = compiled.is_file() and _voucher(compiled) == _machine()
        if not self.is_compiled and _voucher(path) is None:
            raise ModelDirError(
                f"{path} was changed or not made here, and such files can run any code; export again"
            )
        try:
            self._run = _load_compiled(compiled) if self.is_compiled else _load_program(path)
        except Exception as error:  # a damaged archive fails in many ways
            raise ModelDirError(f"cannot open {path}: {first_line(error)}; export again") from None

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify images (N, H, W, C). Returns probabilities (N, K).

        Raises:
            ShapeError: They are of another size.
        """
        # AOTInductor's code looks at neither size nor strides: it would read beyond smaller images.
        if self._image_size not in (None, images.shape[1:3]):
            raise ShapeError(
                f"this export takes images of {self._image_size} px, got {images.shape[1:3]}; "
                "resize them, or export with --dynamic-size"
            )
        batch = torch.from_numpy(np.ascontiguousarray(images))
        with torch.inference_mode():
            result: NDArray[np.float32] = self._run(batch).numpy()
        return result


def vouch(path: Path) -> None:
    """Note that this user made a file on this machine, so that it may be opened.

    Raises:
        OSError: It cannot be read, or the note cannot be written.
    """
    note = _note(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(note, _machine())


def _voucher(path: Path) -> str | None:
    """The machine that a file was made on by this user; None where nobody vouches for it."""
    try:
        return _note(path).read_text(encoding="utf-8")
    except OSError:
        return None


def _note(path: Path) -> Path:
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return default_cache_dir() / "exports" / checksum


def _machine() -> str:
    """What native code depends on: the processor's instructions and PyTorch's version."""
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        # `flags` on x86, `Features` on ARM; the same for every core.
        found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpu, re.MULTILINE)
        instructions = found.group(1) if found else platform.processor()
    except OSError:
        instructions = platform.processor()
    return f"torch {torch.__version__}\n{platform.system()} {platform.machine()}\n{instructions}\n"


def _load_compiled(path: Path) -> Callable[[Tensor], Tensor]:
    import torch._inductor

    run: Callable[[Tensor], Tensor] = torch._inductor.aoti_load_package(str(path))
    return run


def _load_program(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()
