"""What a toolchain has to bring, and where its file is found: ``exporters/FORMAT.py`` for every format."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args

from phiscale.deploy.export_store import Export, Format, Precision
from phiscale.deploy.exporters.folding import Array
from phiscale.errors import ModelDirError
from phiscale.weights.config import ModelDir

if TYPE_CHECKING:
    from phiscale.deploy.quantize import Quantizer
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["Toolchain", "Write", "get_toolchain"]


class Write(Protocol):
    """Writes a model, from uint8 images (N, H, W, C) to probabilities (N, K)."""

    def __call__(
        self,
        model: ModelDir,
        tensors: Mapping[str, Array],
        path: Path,
        *,
        dynamic_size: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the file.

        Args:
            model: Has spec and preprocessing.
            tensors: Its weights by our names.
            path: The file, in a folder that is the export's own.
            dynamic_size: Whether height and width may vary.
            metadata: Texts to keep in the file.

        Raises:
            ModelDirError: The toolchain cannot export this model, or cannot write this way.
            MissingDependencyError: The toolchain is not installed.
            OSError: The file cannot be written.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """One format that models are exported in.

    Attributes:
        file: Name of the file to open.
        precisions: What it can compute in, the default first.
        packages: Distributions whose versions an export notes.
        write: Writes the file.
        open: Opens an export in the engine that it is for, after its files have been verified; raises
            ModelDirError where the engine cannot read them and MissingDependencyError where it is not
            installed.
        check_batch: Images per run when an export is checked; None for any number.
        quantizer: Takes a file that `write` wrote, to be quantised; where ``"int8"`` is among the precisions.
            Raises MissingDependencyError where what it needs is not installed.
        pack: Makes a quantised export smaller; it may open another file then. Raises OSError where it cannot
            be written.
        why_not_here: Says why no export of this format can run on this system, so that it is written without
            a check; None where it can.
    """

    file: str
    precisions: tuple[Precision, ...]
    packages: tuple[str, ...]
    write: Write
    open: Callable[[Export], Runtime]
    check_batch: int | None = None
    quantizer: Callable[[Path], Quantizer] | None = None
    pack: Callable[[Export], Export] = lambda export: export
    why_not_here: Callable[[], str | None] = lambda: None


def get_toolchain(format: str) -> Toolchain:  # noqa: A002
    """The toolchain of a format; nothing heavy is imported before it works.

    Raises:
        ModelDirError: There is no such format.
    """
    formats = get_args(Format)
    if format not in formats:
        raise ModelDirError(f"no format is named {format!r}; there are: {', '.join(formats)}")
    module = importlib.import_module(f"phiscale.deploy.exporters.{format}")
    toolchain: Toolchain = module.TOOLCHAIN
    return toolchain
