"""`phiscale.convert_weights`: a file of one publisher's layout becomes one of another's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from phiscale.errors import ModelDirError
from phiscale.spec import NetworkSpec
from phiscale.weights.checkpoint import (
    PREPROCESS_KEY,
    SPEC_KEY,
    UNKNOWN_KEY,
    Checkpoint,
    file_sha256,
    open_checkpoint,
)
from phiscale.weights.containers import EXTRAS_KEY, Entry
from phiscale.weights.files import replacing
from phiscale.weights.formats import FORMATS
from phiscale.weights.recognise import tensor_names, to_layout
from phiscale.weights.tensors import write_tensors

__all__ = ["ConvertReport", "convert_weights"]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".h5", ".keras")


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        output: The file that was written.
        layout: Its layout.
        spec: The network in it.
        tensors: How many tensors it has.
        dropped: Tensors that the new layout has no names for.
        notes: What the user of the file must set or know, a sentence each.
    """

    output: Path
    layout: str
    spec: NetworkSpec
    tensors: int
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


def convert_weights(
    source: str | Path,
    to: str,
    output: str | Path,
    *,
    spec: NetworkSpec | None = None,
    entry: Entry | None = None,
    overwrite: bool = False,
) -> ConvertReport:
    """Write weights of any publisher in the layout of another. No value changes, and no type.

    Args:
        source: As for `load_weights`.
        to: ``"timm"``, ``"torchvision"``, ``"lukemelas"``, ``"keras"``, ``"huggingface"``, ``"article"`` or
            ``"phiscale"``.
        output: The file to write: ``.safetensors``, ``.pt`` or ``.pth``; for Keras ``.weights.h5`` or
            ``.h5``.
        spec: The network in the file, where it is none of the published ones.
        entry: ``"ema"`` or ``"plain"`` weights of a training checkpoint.
        overwrite: Whether a file at `output` may be replaced.

    Returns:
        What was written, with notes on what the new file's user must set.

    Raises:
        ModelDirError: The source cannot be read or is incomplete, the layout cannot hold the network, or
            the output cannot be written.
    """
    path = Path(output)
    _check_output(path, to, overwrite=overwrite)
    checkpoint = open_checkpoint(source, model=spec, entry=entry)
    if checkpoint.missing or checkpoint.wrong_shape:
        first = next(iter([*checkpoint.missing, *checkpoint.wrong_shape]))
        count = len(checkpoint.missing) + len(checkpoint.wrong_shape)
        raise ModelDirError(
            f"{source} is incomplete: {count} tensors of {checkpoint.spec.name} are missing or of another "
            f"shape, such as {first}; convert the whole file, or give the spec of its network"
        )
    layout = FORMATS[to]
    converted = to_layout(layout, checkpoint.spec, checkpoint.tensors)
    names = tensor_names(layout, checkpoint.spec)
    _write(converted, path, to, checkpoint)
    return ConvertReport(
        output=path,
        layout=to,
        spec=checkpoint.spec,
        tensors=len(converted),
        dropped=tuple(name for name in checkpoint.tensors if name not in names) + checkpoint.unexpected,
        notes=tuple(_notes(checkpoint, to)),
    )


def _check_output(path: Path, to: str, *, overwrite: bool) -> None:
    if to not in FORMATS:
        raise ModelDirError(f"no layout is named {to!r}; known: {', '.join(FORMATS)}")
    if path.suffix not in _SUFFIXES:
        raise ModelDirError(f"{path} has an unknown suffix; give one of {', '.join(_SUFFIXES)}")
    if (path.suffix in (".h5", ".keras")) != (to == "keras"):
        wanted = ".weights.h5" if to == "keras" else ".safetensors or .pth"
        raise ModelDirError(f"a file of the {to} layout ends with {wanted}, not {path.suffix}")
    if path.exists() and not overwrite:
        raise ModelDirError(f"{path} exists; give another name, or overwrite")
    if not path.absolute().parent.is_dir():
        raise ModelDirError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")


def _write(tensors: Mapping[str, Tensor], path: Path, to: str, checkpoint: Checkpoint) -> None:
    if to == "keras":
        from phiscale.weights.hdf5 import KerasKind, write_keras

        kind: KerasKind = "weights.h5" if path.name.endswith(".weights.h5") else "legacy h5"
        arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
        try:
            write_keras(path, arrays | _before_stem(checkpoint), kind=kind)
        except OSError as error:
            raise ModelDirError(f"cannot write {path}: {error}") from None
        return
    try:
        with replacing(path) as temporary:
            if path.suffix == ".safetensors":
                origin = f"{checkpoint.layout.name}, sha256 {file_sha256(checkpoint.path)}"
                header = {"format": "pt", SPEC_KEY: checkpoint.spec.to_json(), "phiscale.origin": origin}
                if checkpoint.preprocess.value is not None:
                    header[PREPROCESS_KEY] = json.dumps(checkpoint.preprocess.value.to_dict())
                if checkpoint.extras:
                    header[EXTRAS_KEY] = json.dumps({n: t.tolist() for n, t in checkpoint.extras.items()})
                if checkpoint.open_settings:
                    header[UNKNOWN_KEY] = ", ".join(checkpoint.open_settings)
                write_tensors(tensors, temporary, header)
            else:
                torch.save(dict(tensors), temporary)
    except OSError as error:
        raise ModelDirError(f"cannot write {path}: {error}") from None


def _before_stem(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    """Variables of Keras' layer before the stem: those of the file, or those of its preprocessing."""
    from phiscale.weights.hdf5 import normalization_tensors

    if checkpoint.extras:
        return {name: tensor.numpy() for name, tensor in checkpoint.extras.items()}
    preprocess = checkpoint.preprocess.value
    channels = checkpoint.spec.in_channels
    known = preprocess is not None and preprocess.channels == channels
    mean, std = (preprocess.mean, preprocess.std) if known else ((0.0,) * channels, (1.0,) * channels)
    return normalization_tensors(mean, std)


def _notes(checkpoint: Checkpoint, to: str) -> list[str]:
    """What the layout's own library does by itself, and the weights were not trained with."""
    spec, known = checkpoint.spec, checkpoint.settings
    padding, eps = known["padding"].value, known["norm_eps"].value
    if padding is None:
        return [
            "padding and norm_eps are not in the file: use the network that the weights were trained with"
        ]
    if to == "timm":
        if (padding, eps) == ("same", 1e-3):
            return [f"load it into timm's tf_{spec.name}"]
        if padding == "symmetric":
            bn = "" if eps == 1e-5 else f" with bn_eps={eps:g}"
            return [f"load it into timm's {spec.name}{bn}, not into tf_{spec.name}"]
    own = {"torchvision": "symmetric"}.get(to, "same")
    if to not in ("phiscale", "timm") and padding != own:
        return [
            f"the weights were trained with {padding} padding and {to} pads {own}: accuracy will fall there"
        ]
    return []
