"""Files of weights, whoever wrote them: what kind a file is is read from its first bytes, not its name.

Nothing in a file is run. Pickles are read by ``torch.load(weights_only=True)``, which knows tensors and
plain values alone.
"""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from phiscale.errors import ModelDirError

__all__ = ["EXTRAS_KEY", "Container", "Entry", "Kind", "file_kind", "read_container"]

# Where `convert_weights` keeps in a header what our layout has no place for.
EXTRAS_KEY = "phiscale.extras"
BEFORE_STEM = "normalization/"

Kind = Literal["safetensors", "pickle", "keras", "hdf5"]
Entry = Literal["ema", "plain"]

# Where training scripts put the averaged and the raw weights. torchvision's references call the latter
# "model"; Lightning's weight averaging keeps the averaged ones in "state_dict".
_EMA_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema")
_PLAIN_ENTRIES = (
    "current_model_state",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "weights",
    "params",
)
# What timm's and torchvision's training scripts leave beside the tensors; building one runs no code.
_HARMLESS: list[Any] = [argparse.Namespace]
_DAMAGED = "copy or download it again"


@dataclass(frozen=True, kw_only=True)
class Container:
    """What a file holds.

    Attributes:
        path: The file.
        kind: How it is written.
        tensors: Its tensors by the names in the file, without those of other parts of a checkpoint.
        metadata: Texts in the header of a safetensors file.
        entries: Which of ``"ema"`` and ``"plain"`` a training checkpoint has.
        entry: Which one `tensors` are; None where the file has nothing but weights.
        extras: Tensors that belong to no network of ours: those of Keras' layer before the stem.
        transform: Mean and std that the layers before a Keras network's stem come to, if known.
        transform_source: Where that is known from, or why it is not.
    """

    path: Path
    kind: Kind
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    entry: Entry | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    transform: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    transform_source: str = ""


def read_container(path: Path, *, entry: Entry | None = None) -> Container:
    """Read a file of weights of any kind.

    Args:
        path: The file.
        entry: Which weights of a training checkpoint; None takes the averaged ones where there are some.

    Raises:
        ModelDirError: No such file, of no known kind, damaged, not only tensors, or without the entry.
    """
    kind = file_kind(path)
    match kind:
        case "safetensors":
            container = _read_safetensors(path)
        case "pickle":
            return _read_pickle(path, entry)
        case "keras" | "hdf5":
            container = _read_keras(path, kind)
    if entry == "ema":
        raise ModelDirError(f"{path} has no averaged weights (entry 'ema'); leave out entry")
    return container


def file_kind(path: Path) -> Kind:
    """What kind of file it is, by its first bytes.

    Raises:
        ModelDirError: It cannot be read, or is of no known kind.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start[:4] == b"PK\x03\x04":
            return "keras" if _is_keras_archive(path) else "pickle"
    except FileNotFoundError:
        raise ModelDirError(f"{path} does not exist; give a file of weights or a model directory") from None
    except OSError as error:
        raise ModelDirError(f"cannot read {path}: {error.strerror or error}") from None
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if start[8:9] == b"{":
        return "safetensors"
    if start[:1] == b"\x80":  # torch before 1.6 wrote bare pickles
        return "pickle"
    what = "is empty" if not start else "is no file of weights"
    raise ModelDirError(
        f"{path} {what}; known are safetensors, PyTorch's .pt and .pth, and Keras' .keras and .h5"
    )


def _is_keras_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "model.weights.h5" in archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return False


def _read_safetensors(path: Path) -> Container:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {_printable(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise ModelDirError(f"{path} is truncated or damaged ({_line(error)}); {_DAMAGED}") from None
    except OSError as error:
        raise ModelDirError(f"cannot read {path}: {_line(error)}") from None
    return Container(
        path=path, kind="safetensors", tensors=tensors, metadata=metadata, extras=_stored_extras(metadata)
    )


def _stored_extras(metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors of another layout that `convert_weights` kept in the header."""
    try:
        stored = json.loads(metadata.get(EXTRAS_KEY, "{}"))
        return {
            str(name): torch.tensor(values, dtype=torch.int32 if name.endswith("/count") else torch.float32)
            for name, values in stored.items()
        }
    except (ValueError, TypeError, AttributeError, RuntimeError, RecursionError):
        return {}


def _read_keras(path: Path, kind: Kind) -> Container:
    from phiscale.weights.hdf5 import input_transform, read_keras

    content = read_keras(path)
    transform = input_transform(content)
    tensors = {_printable(name): torch.from_numpy(array.copy()) for name, array in content.tensors.items()}
    extras = {name: tensors.pop(name) for name in list(tensors) if name.startswith(BEFORE_STEM)}
    return Container(
        path=path,
        kind=kind,
        tensors=tensors,
        extras=extras,
        transform=transform.value,
        transform_source=transform.source,
    )


def _read_pickle(path: Path, entry: Entry | None) -> Container:
    content = _unpickle(path)
    if not isinstance(content, Mapping):
        raise ModelDirError(f"{path} holds a {type(content).__name__} and no state_dict; {_STORE}")
    found: dict[Entry, dict[str, Tensor]] = {}
    for key in _EMA_ENTRIES:
        if (state := _as_state(content.get(key))) and "ema" not in found:
            found["ema"] = state
    for key in _PLAIN_ENTRIES:
        if (state := _as_state(content.get(key))) and "plain" not in found:
            found["plain"] = state
    if "current_model_state" in content and (averaged := _as_state(content.get("state_dict"))):
        found["ema"] = averaged
    if not found:
        tensors = _as_state(content)
        if not tensors:
            raise ModelDirError(f"{path} holds no state_dict; {_STORE}")
        if entry == "ema":
            raise ModelDirError(f"{path} has no averaged weights (entry 'ema'); leave out entry")
        return Container(path=path, kind="pickle", tensors=tensors)
    chosen: Entry = entry or ("ema" if "ema" in found else "plain")
    if chosen not in found:
        raise ModelDirError(f"{path} has no entry {chosen!r}; it has {', '.join(map(repr, found))}")
    return Container(
        path=path, kind="pickle", tensors=found[chosen], entries=tuple(sorted(found)), entry=chosen
    )


_STORE = "store one with torch.save(net.state_dict(), ...)"


def _unpickle(path: Path) -> Any:
    try:
        # An open file, for of a path torch takes the suffix as its kind.
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_HARMLESS),
        ):
            # Old files make torch warn about storage types of its own; nothing that a user can act on.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelDirError(
            f"{path} is damaged, or holds Python objects, which could run code and are not loaded; "
            "store its state_dict alone with torch.save, or as .safetensors"
        ) from None
    except (MemoryError, Exception) as error:
        # A damaged pickle fails with whatever its first wrong byte leads to: IndexError, KeyError, ...
        raise ModelDirError(f"cannot read {path}: {_line(error)}; {_DAMAGED}") from None


def _as_state(value: Any) -> dict[str, Tensor] | None:
    """A mapping of names to tensors, or None; other plain values in it, such as counters, are left out."""
    if not isinstance(value, Mapping):
        return None
    tensors = {
        _printable(name): item.detach()
        for name, item in value.items()
        if isinstance(name, str) and isinstance(item, Tensor) and _has_values(item)
    }
    # torch's AveragedModel, which torchvision's scripts use, counts its updates in one.
    tensors.pop("n_averaged", None)
    return tensors or None


def _has_values(tensor: Tensor) -> bool:
    """Whether it is a plain array; complex, sparse, nested or quantized ones are nobody's weights."""
    if tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.is_complex():
        return False
    # A view that repeats a few values can claim more than any memory holds.
    return tensor.layout == torch.strided and (
        tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _printable(name: str) -> str:
    """A name as messages of one line can have it."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def _line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return json.dumps(text)[1:-1][:200] if text else type(error).__name__
