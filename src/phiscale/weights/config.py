"""What a model directory says about itself: ``config.json``. No torch here."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiscale.errors import ModelDirError, SpecError
from phiscale.preprocess import Preprocess
from phiscale.spec import NetworkSpec

__all__ = [
    "CARD",
    "CONFIG",
    "FORMAT",
    "HEADER_KEY",
    "METRICS",
    "WEIGHTS",
    "ModelDir",
    "header_config",
    "plain",
    "read_config",
]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
METRICS = "metrics.json"

FORMAT = "phiscale-model"
FORMAT_VERSION = 1
HEADER_KEY = "phiscale.config"
# The safetensors library refuses longer headers too.
_MAX_HEADER_BYTES = 100_000_000

_WHAT = f"a model directory holds {CONFIG} and {WEIGHTS}, as phiscale.save and `phiscale fit` write them"


@dataclass(frozen=True, kw_only=True)
class ModelDir:
    """What a model directory says about itself, without its weights.

    Attributes:
        path: The directory.
        spec: The network.
        classes: Name of each class, in the order of the logits.
        preprocess: How an image becomes the network's input.
        provenance: Versions, time of creation, and whatever training recorded; plain JSON values.
        weights_sha256: Checksum of the weights' names, shapes, types and values.

    Raises:
        ModelDirError: Classes, spec and preprocessing do not fit together.
    """

    path: Path
    spec: NetworkSpec
    classes: tuple[str, ...]
    preprocess: Preprocess
    provenance: Mapping[str, Any]
    weights_sha256: str

    def __post_init__(self) -> None:
        _check_classes(self.classes, self.spec.num_classes)
        if self.preprocess.channels != self.spec.in_channels:
            raise ModelDirError(
                f"preprocess makes {self.preprocess.channels} channels and the network takes "
                f"{self.spec.in_channels}; give mean and std {self.spec.in_channels} values"
            )

    @property
    def weights_path(self) -> Path:
        """The safetensors file."""
        return self.path / WEIGHTS

    def to_json(self) -> str:
        """Content of ``config.json``."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_dict(),
            "weights_sha256": self.weights_sha256,
            "provenance": plain(self.provenance),
        }
        return json.dumps(content, indent=2) + "\n"


def read_config(path: str | Path) -> ModelDir:
    """Read what a model directory says about itself. Loads no torch.

    Args:
        path: A model directory.

    Raises:
        ModelDirError: No directory, no model directory, incomplete, damaged, or written by a newer
            version; the message says which and what to do.
    """
    folder = Path(path)
    try:
        if not folder.is_dir():
            problem = "is a file" if folder.exists() else "does not exist"
            raise ModelDirError(f"{folder} {problem}; {_WHAT}")
    except OSError as error:
        raise ModelDirError(f"cannot read {folder}: {error}") from None
    config, weights = folder / CONFIG, folder / WEIGHTS
    if not config.is_file():
        if weights.is_file():
            raise ModelDirError(
                f"{folder} is incomplete: {CONFIG} is missing, so saving was cut off; save or train again"
            )
        raise ModelDirError(f"{folder} is not a model directory: it has no {CONFIG}; {_WHAT}")
    if not weights.is_file():
        raise ModelDirError(f"{folder} is incomplete: {WEIGHTS} is missing; copy it there or save again")
    content = _parse_json(_read_text(config), config)
    embedded = header_config(weights)
    if embedded is not None and embedded.get("weights_sha256") != content.get("weights_sha256"):
        # Saving was cut off between the weights and config.json: the weights know better.
        content = embedded
    return _from_dict(content, folder)


def plain(value: Any) -> Any:
    """A copy of plain values that every JSON reader takes: NaN and infinity become null.

    Raises:
        ModelDirError: There is something else in it.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    raise ModelDirError(
        f"only plain JSON values can be stored, got {type(value).__name__}; convert it to a number or text"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ModelDirError(f"{path} is damaged: it is not text; copy the directory again") from None
    except OSError as error:
        raise ModelDirError(f"cannot read {path}: {error}") from None


def _parse_json(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelDirError(f"{path} is damaged: {error}; copy the directory again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelDirError(f'{path} does not describe a phiscale model ("format": "{FORMAT}"); {_WHAT}')
    version = content.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ModelDirError(f"{path}: format_version must be a number, got {version!r}")
    if version > FORMAT_VERSION:
        raise ModelDirError(
            f"{path} has format version {version} and this phiscale reads up to {FORMAT_VERSION}; "
            "run: pip install --upgrade phiscale"
        )
    return content


def header_config(weights: Path) -> dict[str, Any] | None:
    """The configuration in a safetensors header, or None where there is none that can be read.

    A header is the length of a JSON text in 8 bytes, little-endian, and that text; so it needs no torch.
    What is wrong with a damaged file is said by whoever loads the tensors.
    """
    try:
        with weights.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                return None
            metadata = json.loads(file.read(length))["__metadata__"]
            return _parse_json(metadata[HEADER_KEY], weights)
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError):
        return None


def _from_dict(content: Mapping[str, Any], folder: Path) -> ModelDir:
    path = folder / CONFIG
    for key, kind in (("spec", dict), ("classes", list), ("preprocess", dict), ("weights_sha256", str)):
        if not isinstance(content.get(key), kind):
            raise ModelDirError(f"{path}: {key} is missing or of the wrong type; copy the directory again")
    provenance = content.get("provenance", {})
    try:
        return ModelDir(
            path=folder,
            spec=NetworkSpec.from_dict(content["spec"]),
            classes=tuple(content["classes"]),
            preprocess=Preprocess.from_dict(content["preprocess"]),
            provenance=provenance if isinstance(provenance, dict) else {},
            weights_sha256=content["weights_sha256"],
        )
    except (SpecError, ModelDirError) as error:
        raise ModelDirError(f"{path}: {error}") from None


def _check_classes(classes: Sequence[str], num_classes: int) -> None:
    if len(classes) != num_classes:
        raise ModelDirError(
            f"{len(classes)} class names for a network of {num_classes} classes; give one name per class"
        )
    for name in classes:
        if not isinstance(name, str) or not name:
            raise ModelDirError(f"a class name must be a text of at least one character, got {name!r}")
    seen: set[str] = set()
    for name in classes:
        if name in seen:
            raise ModelDirError(f"class name {name!r} appears twice; names must differ")
        seen.add(name)
