"""One door for everybody's weights: a file, a folder or a catalog name in, our tensors and facts out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from phiscale.errors import ModelDirError, PhiscaleError
from phiscale.preprocess import Preprocess
from phiscale.spec import NetworkSpec
from phiscale.weights import conventions
from phiscale.weights.catalog import Record, records
from phiscale.weights.config import CONFIG, FORMAT, WEIGHTS, read_config
from phiscale.weights.containers import Container, Entry, read_container
from phiscale.weights.conventions import SETTINGS, Fact, Folder
from phiscale.weights.formats import FORMATS
from phiscale.weights.formats.keymap import KeyMap
from phiscale.weights.recognise import Match, recognise
from phiscale.weights.shapes import Shape
from phiscale.weights.sources import resolve

__all__ = [
    "PREPROCESS_KEY",
    "SPEC_KEY",
    "UNKNOWN_KEY",
    "Checkpoint",
    "file_sha256",
    "open_checkpoint",
]

# Under which `convert_weights` keeps the spec in the header of a safetensors file.
SPEC_KEY = "phiscale.spec"
PREPROCESS_KEY = "phiscale.preprocess"
# Present where padding and batch norm in that spec are a guess.
UNKNOWN_KEY = "phiscale.settings_unknown"
_FOLDER_FILES = (WEIGHTS, "pytorch_model.bin", "model.weights.h5")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Somebody's weights, understood.

    Attributes:
        source: What the user named.
        path: The file that it led to.
        kind: ``"safetensors"``, ``"pickle"``, ``"keras"`` or ``"hdf5"``.
        layout: Whose names it has.
        spec: The network, with the file's classes and channels, and the settings below where known.
        tensors: By our names, in our order of axes.
        missing: Our names of tensors that the file lacks.
        wrong_shape: Our name -> (needed, found).
        unexpected: The file's names of tensors that the network does not have.
        settings: ``padding``, ``norm_eps`` and ``norm_momentum``, each with its source; a value of None
            is to be asked for.
        preprocess: A `Preprocess` and its source.
        classes: Names of the classes and their source.
        entries: ``"ema"`` and ``"plain"``, as far as a training checkpoint has them.
        entry: Which of them `tensors` are.
        extras: Tensors of Keras' layer before the stem, by their names in the file.
        record: The catalog's record, where the file is one of its files.
    """

    source: str
    path: Path
    kind: str
    layout: KeyMap
    spec: NetworkSpec
    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...] = ()
    wrong_shape: Mapping[str, tuple[Shape, Shape]]
    unexpected: tuple[str, ...] = ()
    settings: Mapping[str, Fact]
    preprocess: Fact
    classes: Fact
    entries: tuple[Entry, ...] = ()
    entry: Entry | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    record: Record | None = None

    @property
    def complete(self) -> bool:
        """Whether the file has just the tensors of the network."""
        return not (self.missing or self.wrong_shape or self.unexpected)

    @property
    def open_settings(self) -> tuple[str, ...]:
        """Settings that nothing says."""
        return tuple(name for name, fact in self.settings.items() if fact.value is None)


def open_checkpoint(
    source: str | Path,
    *,
    model: NetworkSpec | None = None,
    entry: Entry | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Read weights of any publisher and find out what they are.

    Args:
        source: A file; a folder (a model directory, or a repository of transformers or timm); a name of the
            catalog; ``"imagenet"``, the best of the catalog for `model`; or ``hf://user/repository``.
        model: The network that it is meant for, which may be one of the user's own.
        entry: ``"ema"`` or ``"plain"``, for training checkpoints; by default averaged weights where there
            are some.
        offline: Whether nothing may be downloaded.

    Raises:
        ModelDirError: Nothing of that name, it cannot be had or read, or is of no known layout or network.
        MissingDependencyError: A package for this kind of file is not installed.
    """
    path, record = resolve(source, model=model, offline=offline)
    if path.is_dir() and _is_model_dir(path):
        return _of_model_dir(str(source), path)
    file = _file_in(path) if path.is_dir() else path
    container = read_container(file, entry=entry)
    own = _own_spec(container)
    try:
        match = recognise(container.tensors, also=[spec for spec in (own, model) if spec is not None])
    except ModelDirError as error:
        raise ModelDirError(f"{file}: {error}") from None
    folder = conventions.read_folder(file.parent) if _has_siblings(file) else Folder(config={}, processor={})
    record = record or _published_file(file, match)
    return _checkpoint(str(source), container, match, folder, own, record)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits.

    Raises:
        ModelDirError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelDirError(f"cannot read {path}: {error.strerror or error}") from None


def _checkpoint(
    source: str,
    container: Container,
    match: Match,
    folder: Folder,
    own: NetworkSpec | None,
    record: Record | None,
) -> Checkpoint:
    layout = match.layout.name
    if UNKNOWN_KEY in container.metadata:
        settings = conventions.unknown_settings()
    else:
        settings = conventions.settings_of(layout, match.spec, folder, own=own, record=record)
    known = {name: fact.value for name, fact in settings.items() if fact.value is not None}
    return Checkpoint(
        source=source,
        path=container.path,
        kind=container.kind,
        layout=match.layout,
        spec=replace(match.spec, **known),
        tensors=match.tensors,
        missing=match.missing,
        wrong_shape=match.wrong_shape,
        unexpected=match.unexpected,
        settings=settings,
        preprocess=_own_preprocess(container)
        or conventions.preprocess_of(
            layout,
            match.spec,
            folder,
            record=record,
            transform=container.transform,
            transform_source=container.transform_source,
        ),
        classes=conventions.class_names(match.spec, folder),
        entries=container.entries,
        entry=container.entry,
        extras=container.extras,
        record=record,
    )


def _of_model_dir(source: str, path: Path) -> Checkpoint:
    from phiscale.weights.model_dir import load_state

    model = read_config(path)
    fact = "the model directory"
    return Checkpoint(
        source=source,
        path=model.weights_path,
        kind="safetensors",
        layout=FORMATS["phiscale"],
        spec=model.spec,
        tensors=load_state(path),
        wrong_shape={},
        settings={name: Fact(value=getattr(model.spec, name), source=fact) for name in SETTINGS},
        preprocess=Fact(value=model.preprocess, source=fact),
        classes=Fact(value=model.classes, source=fact),
    )


def _is_model_dir(path: Path) -> bool:
    """Whether a folder is a model directory, whole or not, rather than a repository of somebody else."""
    try:
        return FORMAT in (path / CONFIG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _file_in(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ModelDirError(f"{folder} has no weights in it; there should be {', '.join(_FOLDER_FILES)}")


def _has_siblings(file: Path) -> bool:
    """Whether the JSON files beside a file belong to it, which only these names say."""
    return file.name in _FOLDER_FILES


def _own_spec(container: Container) -> NetworkSpec | None:
    """The spec in the header of a file that was written here."""
    from phiscale.weights.config import HEADER_KEY

    try:
        if SPEC_KEY in container.metadata:
            return NetworkSpec.from_json(container.metadata[SPEC_KEY])
        if HEADER_KEY in container.metadata:
            return NetworkSpec.from_dict(json.loads(container.metadata[HEADER_KEY])["spec"])
    except (PhiscaleError, ValueError, KeyError, TypeError, RecursionError):
        return None  # names and shapes say enough
    return None


def _own_preprocess(container: Container) -> Fact | None:
    """The preprocessing in the header of a file that was written here."""
    try:
        stored = json.loads(container.metadata[PREPROCESS_KEY])
        return Fact(value=Preprocess.from_dict(stored), source="the header of the file")
    except (PhiscaleError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _published_file(file: Path, match: Match) -> Record | None:
    """The catalog's record with this file's checksum."""
    known: dict[str, Any] = {
        record.sha256: record for record in records(match.spec.name) if record.sha256 is not None
    }
    prefixes = {record.sha256_prefix: record for record in records(match.spec.name) if record.sha256_prefix}
    if not known and not prefixes:
        return None
    digest = file_sha256(file)
    by_prefix = next((entry for prefix, entry in prefixes.items() if digest.startswith(prefix)), None)
    found: Record | None = known.get(digest, by_prefix)
    return found
