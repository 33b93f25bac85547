"""Files of Keras: ``.keras`` archives, ``.weights.h5`` and the older ``.h5``.

Neither Keras nor torch is needed, and nothing in a file is run: its config is read as plain values, and
no layer is built from it.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from phiscale.errors import ModelDirError, require
from phiscale.weights.files import replacing
from phiscale.weights.hdf5_process import AGAIN, CONFIG, WEIGHTS, receive
from phiscale.weights.keras_inputs import InputTransform, input_transform
from phiscale.weights.keras_names import (
    Arrays,
    by_group,
    by_path,
    canonical,
    class_of,
    count,
    groups_of,
    kind_of,
    ordered,
)

__all__ = [
    "InputTransform",
    "KerasFile",
    "KerasKind",
    "input_transform",
    "normalization_tensors",
    "read_keras",
    "write_keras",
]

KerasKind = Literal["keras", "weights.h5", "legacy h5"]


@dataclass(frozen=True, kw_only=True)
class KerasFile:
    """What a file of Keras holds.

    Attributes:
        kind: How it is written.
        tensors: Arrays in Keras' order of axes by ``layer/variable``, such as ``stem_conv/kernel``, as
            `keras.applications` calls them; those of the layer before the stem are ``normalization/mean``,
            ``normalization/variance`` and ``normalization/count``.
        config: The model's config, where the file has one.
        rescalings: How many `Rescaling` layers it lists, where weights of Keras 3 list all layers.
    """

    kind: KerasKind
    tensors: Arrays
    config: Mapping[str, Any] | None = None
    rescalings: int | None = None


def read_keras(path: str | Path) -> KerasFile:
    """Read a file of Keras, whatever its name: an archive, weights of Keras 3, or HDF5 of Keras 2.

    Layers of a model inside another are found too. Where a config shows that a ``Dense`` alone follows the
    average pooling of an EfficientNet, it is called ``predictions``. The state of optimizers is left out.
    Weights in bfloat16 become float32, which is exact.

    Raises:
        ModelDirError: No such file, not of Keras, damaged, or with parts that are not read: links,
            external data, anything but numbers, quantised layers.
        MissingDependencyError: h5py is not installed.
    """
    path = Path(path)
    require("h5py", extra="keras")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise ModelDirError(f"{path} does not exist; give a .keras or .h5 file") from None
    except OSError as error:
        raise ModelDirError(f"cannot read {path}: {error.strerror or error}") from None
    if not start.startswith((b"PK\x03\x04", b"\x89HDF\r\n\x1a\n")):
        raise ModelDirError(f"{path} is no file of Keras; those begin as zip archives or as HDF5 do")
    content = receive(path)
    try:
        config = None if content.config is None else json.loads(content.config)
    except (ValueError, RecursionError) as error:
        raise ModelDirError(f"the config in {path} is no JSON ({error}); {AGAIN}") from None
    if config is not None and not isinstance(config, dict):
        raise ModelDirError(f"the config in {path} is no JSON object; {AGAIN}")
    try:
        tensors = canonical(by_group(content) if content.numbered else by_path(content), config)
    except ModelDirError as error:
        raise ModelDirError(f"{path} {error}") from None
    kind: KerasKind = "weights.h5" if content.numbered else "legacy h5"
    return KerasFile(
        kind="keras" if start[:1] == b"P" else kind,
        tensors=tensors,
        config=config,
        rescalings=[class_of(group) for group in content.names].count("rescaling") or None,
    )


def normalization_tensors(mean: Sequence[float], std: Sequence[float]) -> Arrays:
    """Variables of the layer before the stem, for a network that is built with ``weights=None``.

    Args:
        mean: Per channel, on the scale 0 to 1.
        std: Per channel, on the scale 0 to 1.

    Examples:
        >>> normalization_tensors([0.5], [0.25])["normalization/variance"]
        array([0.0625], dtype=float32)
    """
    return {
        "normalization/mean": np.asarray(mean, np.float32),
        "normalization/variance": np.square(np.asarray(std, np.float64)).astype(np.float32),
        "normalization/count": np.zeros((), np.int32),
    }


def write_keras(
    path: str | Path,
    tensors: Mapping[str, NDArray[Any]],
    *,
    kind: KerasKind = "weights.h5",
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write weights of an EfficientNet that ``load_weights`` of `keras.applications`' network takes.

    Keras goes by a file's name: it must end in ``.weights.h5``, in ``.h5`` alone for the older kind, or in
    ``.keras``.

    Args:
        path: The file; written whole or not at all.
        tensors: Arrays by the names of `KerasFile`, in any order. The layer before the stem is needed too:
            `normalization_tensors`.
        kind: ``"weights.h5"`` and ``"legacy h5"`` are weights alone, ``"keras"`` is a model.
        config: Of an archive that was read, with the same layers; for ``"keras"`` only.

    Raises:
        ModelDirError: The tensors are not those of an EfficientNet, or there is no config for an archive.
        MissingDependencyError: h5py is not installed.
        OSError: The file cannot be written.
    """
    h5py = require("h5py", extra="keras")
    layers = ordered(tensors)
    if kind == "keras":
        groups = groups_of(config, layers)
        image = io.BytesIO()
        with h5py.File(image, "w") as file:
            _write_numbered(file, layers, groups)
        # How the model was trained is of no use without the optimizer's state.
        plain = {key: value for key, value in (config or {}).items() if key != "compile_config"}
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(zipfile.ZipInfo("metadata.json"), json.dumps({"saved_by": "phiscale"}))
            archive.writestr(zipfile.ZipInfo(CONFIG), json.dumps(plain))
            archive.writestr(zipfile.ZipInfo(WEIGHTS), image.getvalue())
        return
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        if kind == "weights.h5":
            _write_numbered(file, layers, count([(kind_of(name), name) for name in layers]))
        else:
            _write_named(file, layers)


def _write_numbered(file: Any, layers: Mapping[str, Arrays], groups: Mapping[str, str]) -> None:
    for layer, variables in layers.items():
        group = file.create_group(f"layers/{groups[layer]}/vars")
        group.attrs["name"] = layer
        for number, array in enumerate(variables.values()):
            group.create_dataset(str(number), data=array)


def _write_named(file: Any, layers: Mapping[str, Arrays]) -> None:
    """The layout of the files that `keras.applications` publishes, which Keras 2 and 3 read."""
    file.attrs["layer_names"] = [layer.encode() for layer in layers]
    file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.15.0"
    for layer, variables in layers.items():
        group = file.create_group(layer)
        prefix = "depthwise_" if kind_of(layer) == "depthwise_conv2d" else ""
        names = {f"{layer}/{prefix}{leaf}:0": array for leaf, array in variables.items()}
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, array in names.items():
            group.create_dataset(name, data=array)
