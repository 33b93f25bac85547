"""Exports of a model: one folder each, whole or absent, which say what they are and how they were checked.

exports/
  onnx-fp32/         model.onnx, export.json
  openvino-fp32/     model.xml, model.bin, export.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from phiscale.errors import ModelDirError
from phiscale.weights.config import ModelDir

__all__ = ["EXPORTS", "Check", "Export", "Format", "Precision", "list_exports", "storing"]

EXPORTS = "exports"
RECORD = "export.json"
_TEMPORARY = ".tmp-"

Format = Literal["onnx", "openvino", "torch", "executorch", "litert"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """How an export answered beside the network that it was made from.

    Attributes:
        images: How many real images both saw.
        source: Where they came from.
        max_difference: Largest difference of a probability.
        agreement: Share of images with the same most likely class, from 0 to 1.
    """

    images: int
    source: str
    max_difference: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Export:
    """An exported network.

    Attributes:
        path: Its folder.
        format: The engine it is for.
        precision: What it computes in.
        file: Name of the file to open.
        image_size: (height, width) that it takes, or None for any.
        weights_sha256: Checksum of the weights that it was made from.
        check: How it answered; None before it was asked.
        latency_ms: Median time of one image on the machine that exported: ``export``, and ``eager`` for
            PyTorch beside it.
        versions: Packages that made and ran it.
    """

    path: Path
    format: Format
    precision: Precision
    file: str
    image_size: tuple[int, int] | None
    weights_sha256: str
    check: Check | None
    latency_ms: Mapping[str, float]
    versions: Mapping[str, str]

    @property
    def model_path(self) -> Path:
        """The file to open."""
        return self.path / self.file

    @property
    def is_faster_than_eager(self) -> bool:
        """Whether one image took less time than in PyTorch, where both were measured."""
        eager = self.latency_ms.get("eager")
        return eager is not None and self.latency_ms.get("export", float("inf")) < eager

    def to_json(self) -> str:
        """Content of ``export.json``."""
        content = {**dataclasses.asdict(self), "path": None}
        del content["path"]
        return json.dumps(content, indent=2) + "\n"


def list_exports(model: ModelDir) -> list[Export]:
    """The exports of a model's present weights, the fastest first; older and broken ones are left out.

    Args:
        model: From `phiscale.weights.config.read_config`.
    """
    found = []
    for record in sorted((model.path / EXPORTS).glob(f"*/{RECORD}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            export = _read(record)
            if export.weights_sha256 == model.weights_sha256 and export.model_path.is_file():
                found.append(export)
    return sorted(found, key=lambda export: export.latency_ms.get("export", float("inf")))


def _read(record: Path) -> Export:
    data: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    size = data["image_size"]
    return Export(
        path=record.parent,
        format=data["format"],
        precision=data["precision"],
        file=str(data["file"]),
        image_size=None if size is None else (int(size[0]), int(size[1])),
        weights_sha256=data["weights_sha256"],
        check=Check(**data["check"]),
        latency_ms={str(key): float(value) for key, value in data["latency_ms"].items()},
        versions=data["versions"],
    )


@contextlib.contextmanager
def storing(model: ModelDir, name: str) -> Iterator[Path]:
    """An empty folder to export into, which takes its place in the model directory at the end.

    An exception, or a kill, leaves the model directory as it was but for a hidden folder, which the next
    export removes.

    Args:
        model: The model.
        name: Name of the export, such as ``onnx-fp32``.

    Yields:
        The folder to write to.

    Raises:
        ModelDirError: It cannot be written.
    """
    parent = model.path / EXPORTS
    folder = parent / f"{_TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
    try:
        parent.mkdir(exist_ok=True)
        for left in parent.glob(f"{_TEMPORARY}{name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        folder.mkdir()
        yield folder
        old = parent / f"{_TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
        if (parent / name).exists():
            (parent / name).replace(old)
        folder.replace(parent / name)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ModelDirError(f"cannot write the export to {parent}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
