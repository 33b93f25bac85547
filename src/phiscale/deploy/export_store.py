"""Exports of a model: one folder each, whole or absent, which say what they are and how they were checked.

exports/
  onnx-fp32/         model.onnx, export.json
  openvino-int8/     model.xml or model.xml.gz, model.bin, export.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from phiscale.errors import ModelDirError
from phiscale.weights.config import ModelDir
from phiscale.weights.files import sync_folder

__all__ = [
    "EXPORTS",
    "Check",
    "Export",
    "Format",
    "Loss",
    "Measure",
    "Precision",
    "Quantization",
    "list_exports",
    "storing",
]

logger = logging.getLogger("phiscale.deploy")

EXPORTS = "exports"
RECORD = "export.json"
_TEMPORARY = ".tmp-"
_OLD = ".old-"

Format = Literal["onnx", "openvino", "torch", "executorch", "litert", "coreml"]
Precision = Literal["fp32", "bf16", "int8"]
Measure = Literal["accuracy", "agreement"]


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
class Loss:
    """What a lower precision costs, measured beside fp32 on images that the network was not trained on.

    Attributes:
        measure: ``"accuracy"`` where the images have labels. Else ``"agreement"``: the share of answers that
            change, which no loss of accuracy can exceed.
        drop: Top-1 accuracy lost, in points (negative is a gain); or the answers that changed, in points. On
            the images as they are or on average over their positions, whichever is more.
        top1: Accuracy in this precision, from 0 to 1; None without labels.
        agreement: Share of images with the same most likely class, from 0 to 1.
        mean_difference: Mean difference of a probability.
        images: How many images were measured.
        views: In how many positions each of them was; more than one where they are few.
        source: Where they came from.
    """

    measure: Measure
    drop: float
    top1: float | None
    agreement: float
    mean_difference: float
    images: int
    views: int
    source: str

    def is_within(self, max_drop: float) -> bool:
        """Whether the drop is at most `max_drop` points, or the weight of one image where that is more.

        So no verdict hangs on a single image: where they are few, one more or less says nothing.
        """
        return self.drop <= max(max_drop, 100 / self.images)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a network was quantised.

    Attributes:
        kept: Groups of layers left in floating point, the most sensitive first.
        sensitivities: Mean difference of a probability with one group alone in int8, by group; empty where
            everything in int8 lost no more than allowed, so that nobody had to ask.
        tried: Drop in points by number of groups kept, in the order of the attempts.
        images: Images that the ranges were measured on.
        source: Where those came from.
    """

    kept: tuple[str, ...]
    sensitivities: Mapping[str, float]
    tried: tuple[tuple[int, float], ...]
    images: int
    source: str


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
        check: How it answered; None before it was asked, and where it cannot be.
        latency_ms: Median time of one image on the machine that exported: ``export``, and ``eager`` for
            PyTorch beside it.
        versions: Packages that made and ran it.
        sha256: Checksum of each file but the record, by its path in the folder; empty while it is made and
            in records of older versions.
        size_bytes: Size of these files; None in records of older versions.
        max_drop: Points of top-1 accuracy that it was allowed to lose; None for fp32.
        loss: What it loses; None for fp32, and where there were no images of the model's own to measure on.
        quantization: How it was quantised; None where it was not.
        unchecked: Why it cannot be asked on the system that it was made on; None where it can.
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
    sha256: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int | None = None
    max_drop: float | None = None
    loss: Loss | None = None
    quantization: Quantization | None = None
    unchecked: str | None = None

    @property
    def model_path(self) -> Path:
        """The file to open."""
        return self.path / self.file

    @property
    def is_faster_than_eager(self) -> bool:
        """Whether one image took less time than in PyTorch, where both were measured."""
        eager = self.latency_ms.get("eager")
        return eager is not None and self.latency_ms.get("export", float("inf")) < eager

    @property
    def is_within_max_drop(self) -> bool:
        """Whether it loses no more than it was allowed to, as far as that was measured."""
        return self.loss is None or self.max_drop is None or self.loss.is_within(self.max_drop)

    def sealed(self) -> Export:
        """The record of what the folder holds now: with checksums and size."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and path.name != RECORD)
        return replace(
            self,
            sha256={path.relative_to(self.path).as_posix(): _sha256(path) for path in files},
            size_bytes=sum(path.stat().st_size for path in files),
        )

    def verify(self) -> None:
        """Look whether the files are those that were checked; engines run damaged weights without a word.

        Raises:
            ModelDirError: A file is missing or damaged.
        """
        for name, expected in self.sha256.items():
            try:
                intact = _sha256(self.path / name) == expected
            except OSError as error:
                raise ModelDirError(f"cannot read {self.path / name}: {error}; export again") from None
            if not intact:
                raise ModelDirError(f"{self.path / name} is damaged; export again")

    def to_json(self) -> str:
        """Content of ``export.json``."""
        content = {**dataclasses.asdict(self), "is_within_max_drop": self.is_within_max_drop}
        del content["path"]
        return json.dumps(content, indent=2) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_exports(model: ModelDir) -> list[Export]:
    """The exports of a model's present weights, the fastest first; older and broken ones are left out.

    A record that cannot be read is said in a warning.

    Args:
        model: From `phiscale.weights.config.read_config`.
    """
    found = []
    for record in sorted((model.path / EXPORTS).glob(f"*/{RECORD}")):
        if not _is_in_place(record.parent):
            continue
        try:
            export = _read(record)
            if export.weights_sha256 == model.weights_sha256 and export.model_path.exists():
                found.append(export)
        # What a damaged record can hold is anything.
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            logger.warning("%s is left aside: %s is damaged; export again", record.parent.name, record)
    return sorted(found, key=lambda export: export.latency_ms.get("export", float("inf")))


def _is_in_place(folder: Path) -> bool:
    """Whether a folder is an export, or one that a killed process moved aside without replacing it."""
    if folder.name.startswith(_OLD):
        return not (folder.parent / folder.name.removeprefix(_OLD)).exists()
    return not folder.name.startswith(_TEMPORARY)


def _read(record: Path) -> Export:
    data: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    size, max_drop, loss = data["image_size"], data.get("max_drop"), data.get("loss")
    file, unchecked = str(data["file"]), data.get("unchecked")
    if data["format"] not in get_args(Format) or data["precision"] not in get_args(Precision):
        raise ValueError("unknown format or precision")
    if Path(file).name != file or file in ("", "..") or "\0" in file:
        raise ValueError("the file must lie in the folder of the export")
    if data["check"] is None and not isinstance(unchecked, str):
        raise ValueError("neither checked, nor said why not")
    return Export(
        path=record.parent,
        format=data["format"],
        precision=data["precision"],
        file=file,
        image_size=None if size is None else (int(size[0]), int(size[1])),
        weights_sha256=data["weights_sha256"],
        check=None if data["check"] is None else Check(**data["check"]),
        latency_ms={str(key): float(value) for key, value in data["latency_ms"].items()},
        versions=data["versions"],
        sha256={str(name): str(value) for name, value in data.get("sha256", {}).items()},
        size_bytes=data.get("size_bytes"),
        max_drop=None if max_drop is None else float(max_drop),
        loss=None if loss is None else Loss(**{**loss, "drop": float(loss["drop"])}),
        quantization=_read_quantization(data.get("quantization")),
        unchecked=unchecked,
    )


def _read_quantization(data: dict[str, Any] | None) -> Quantization | None:
    if data is None:
        return None
    tried = tuple((int(kept), float(drop)) for kept, drop in data["tried"])
    return Quantization(**{**data, "kept": tuple(data["kept"]), "tried": tried})


@contextlib.contextmanager
def storing(model: ModelDir, name: str) -> Iterator[Path]:
    """An empty folder to export into, which takes its place in the model directory at the end.

    An exception, or a kill, leaves the model directory as it was but for hidden folders, which the next
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
    place, old = parent / name, parent / f"{_OLD}{name}"
    folder = parent / f"{_TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
    try:
        parent.mkdir(exist_ok=True)
        _clean(parent, name)
        folder.mkdir()
        yield folder
        # Two moves, as no system moves a folder onto a full one; a kill between them is mended by `_clean`.
        if place.exists():
            place.replace(old)
        folder.replace(place)
        sync_folder(parent)
    except OSError as error:
        raise ModelDirError(f"cannot write the export to {parent}: {error.strerror or error}") from None
    finally:
        _clean(parent, name)


def _clean(parent: Path, name: str) -> None:
    """Put back, or remove, what an export left that did not come to its end."""
    place, old = parent / name, parent / f"{_OLD}{name}"
    with contextlib.suppress(OSError):
        if old.exists() and not place.exists():
            old.replace(place)
    for left in (old, *parent.glob(f"{_TEMPORARY}{name}-*")):
        if place.exists() or left != old:
            shutil.rmtree(left, ignore_errors=True)
