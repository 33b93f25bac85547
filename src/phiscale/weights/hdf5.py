"""Files of Keras: ``.keras`` archives, ``.weights.h5`` and the older ``.h5``.

Neither Keras nor torch is needed, and nothing in a file is run: its config is read as plain values, and
no layer is built from it. HDF5 is a C library that crashes or runs forever on some damaged files (version
2.0 on about one in a thousand with a few wrong bytes), so another process opens the file and sends what it
finds through a pipe. If it dies, the file is refused.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from phiscale.errors import ModelDirError, require
from phiscale.preprocess import IMAGENET_STD
from phiscale.weights.files import replacing

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
Arrays = dict[str, NDArray[Any]]

_AGAIN = "copy or download it again"
_WEIGHTS, _CONFIG, _METADATA = "model.weights.h5", "config.json", "metadata.json"

# Variables of a layer in the order in which Keras numbers them, by the layer's class.
_LEAVES = {
    "normalization": ("mean", "variance", "count"),
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}
_OUTER = ("normalization", "stem_conv", "stem_bn", "", "top_conv", "top_bn", "predictions")
_PARTS = ("expand_conv", "expand_bn", "dwconv", "bn", "se_reduce", "se_expand", "project_conv", "project_bn")
# Layers that leave an image as it is when a model predicts; a random crop becomes a crop of the centre.
_IDENTITY = re.compile(
    r"InputLayer|Identity|Dropout|SpatialDropout2D|Gaussian(Noise|Dropout)|Random(?!Crop)\w+"
)


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
    content = _receive(path)
    try:
        config = None if content.config is None else json.loads(content.config)
    except (ValueError, RecursionError) as error:
        raise ModelDirError(f"the config in {path} is no JSON ({error}); {_AGAIN}") from None
    if config is not None and not isinstance(config, dict):
        raise ModelDirError(f"the config in {path} is no JSON object; {_AGAIN}")
    try:
        tensors = _canonical(_by_group(content) if content.numbered else _by_path(content), config)
    except ModelDirError as error:
        raise ModelDirError(f"{path} {error}") from None
    kind: KerasKind = "weights.h5" if content.numbered else "legacy h5"
    return KerasFile(
        kind="keras" if start[:1] == b"P" else kind,
        tensors=tensors,
        config=config,
        rescalings=[_class_of(group) for group in content.names].count("rescaling") or None,
    )


# ---- what the layers before the stem do ----


@dataclass(frozen=True, kw_only=True)
class InputTransform:
    """What the layers before the stem do to images of values 0 to 255.

    Attributes:
        value: Mean and std per channel, so that ``(image / 255 - mean) / std`` is what the layers give;
            None where that is not known.
        source: Where it is known from, or why it is not.
    """

    value: tuple[tuple[float, ...], tuple[float, ...]] | None
    source: str


def input_transform(file: KerasFile) -> InputTransform:
    """Fold the rescaling and normalisation before the stem into a mean and a std per channel.

    - With a config (``.keras``, and ``.h5`` of a whole model) every `Rescaling` and `Normalization`
      before ``stem_conv`` is carried out in order, whatever its numbers. Layers that do nothing at
      prediction, such as random augmentation, are passed over; any other leaves the transform unknown.
    - Without one the layers are those of `keras.applications`: ``Rescaling(1/255)`` and the
      `Normalization` in the file. Where its variance is ImageNet's *std* (0.229, 0.224, 0.225), the
      weights are the published ones: their std was stored as the variance, and ``weights="imagenet"``
      adds ``Rescaling(1/sqrt(std))``, which has no weights (tensorflow#49930), so that all three layers
      together divide by the std.

      Where the file lists other rescalings than these, the transform is unknown.

    A `Normalization` that was never adapted (mean 0, variance 1) leaves mean 0 and std 1.
    """
    try:
        with np.errstate(all="ignore"):  # odd numbers are found by the result
            return _from_weights(file) if file.config is None else _from_config(file)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return InputTransform(
            value=None, source=f"the numbers of the layers before the stem are wrong: {error}"
        )


@dataclass(kw_only=True)
class _Affine:
    """``scale · image + offset`` per channel, after the layers so far."""

    channels: int
    scale: Any = 1.0
    offset: Any = 0.0

    def rescale(self, scale: Any, offset: Any) -> None:
        scale, offset = self._per_channel(scale), self._per_channel(offset)
        self.scale, self.offset = self.scale * scale, self.offset * scale + offset

    def normalize(self, mean: Any, variance: Any, *, invert: bool = False) -> None:
        mean = self._per_channel(mean)
        std = np.maximum(np.sqrt(self._per_channel(variance)), 1e-7)  # Keras' epsilon
        self.rescale(*((std, mean) if invert else (1 / std, -mean / std)))

    def result(self, source: str) -> InputTransform:
        scale, offset = (np.broadcast_to(value, (self.channels,)) for value in (self.scale, self.offset))
        # Keras computes in float32; of the decimals that are the same there the shortest, 0.229.
        mean, std = (-offset / (255 * scale)).astype(np.float32), (1 / (255 * scale)).astype(np.float32)
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            return InputTransform(
                value=None, source="the layers before the stem lose or turn the image's values"
            )
        return InputTransform(value=(_decimals(mean), _decimals(std)), source=source)

    def _per_channel(self, value: Any) -> NDArray[np.float64]:
        while isinstance(value, Mapping):  # an array in a config, its type beside it
            value = value["config"] if "config" in value else value["value"]
        flat = np.asarray(value, np.float64).reshape(-1)
        if flat.size not in (1, self.channels):
            raise ValueError(f"{flat.size} values for {self.channels} channels")
        return flat


def _decimals(values: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float(np.format_float_positional(value)) + 0.0 for value in values)


def _from_weights(file: KerasFile) -> InputTransform:
    mean, variance = (file.tensors.get(f"normalization/{leaf}") for leaf in ("mean", "variance"))
    if mean is None or variance is None:
        return InputTransform(value=None, source="the file has neither a Normalization nor a config")
    affine = _Affine(channels=mean.size)
    affine.rescale(1 / 255, 0.0)
    affine.normalize(mean, variance)
    source = "Rescaling(1/255) and the file's Normalization, as in keras.applications"
    is_published = variance.shape == (3,) and np.allclose(variance, IMAGENET_STD, rtol=1e-5, atol=0)
    if is_published:
        affine.rescale(1 / np.sqrt(IMAGENET_STD), 0.0)
        source = 'the three layers of weights="imagenet", since the variance in the file is ImageNet\'s std'
    if file.rescalings not in (None, 1, 1 + is_published):
        return InputTransform(
            value=None,
            source=f"the file lists {file.rescalings} Rescaling layers, and only a config says what they do",
        )
    return affine.result(source)


def _from_config(file: KerasFile) -> InputTransform:
    stem, layers = file.tensors.get("stem_conv/kernel"), list(_flatten(file.config))
    end = next((index for index, (_, name, _) in enumerate(layers) if name == "stem_conv"), None)
    if end is None or stem is None or stem.ndim != 4:
        return InputTransform(value=None, source="the config has no layer stem_conv")
    affine, done = _Affine(channels=stem.shape[2]), []
    for kind, name, values in layers[:end]:
        if kind == "Rescaling":
            affine.rescale(values["scale"], values.get("offset", 0.0))
        elif kind == "Normalization":
            affine.normalize(*_statistics(name, values, file.tensors), invert=values.get("invert") is True)
        elif _IDENTITY.fullmatch(kind) or (kind == "ZeroPadding2D" and name == "stem_conv_pad"):
            continue
        else:
            return InputTransform(value=None, source=f"what a layer {kind} before the stem does is not known")
        done.append(kind)
    return affine.result(f"{', '.join(done) or 'no layer'} before the stem in the file's config")


def _statistics(name: str, values: Mapping[str, Any], tensors: Arrays) -> tuple[Any, Any]:
    """Mean and variance of a Normalization: given to its constructor, or adapted and among the weights."""
    if values.get("mean") is not None:
        return values["mean"], values["variance"]
    prefix = name if f"{name}/mean" in tensors else "normalization"
    return tensors[f"{prefix}/mean"], tensors[f"{prefix}/variance"]


def _flatten(config: Any, depth: int = 0) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Class, name and values of every layer in the order of the model, models inside it taken apart."""
    values = config.get("config") if isinstance(config, Mapping) else None
    if not isinstance(values, Mapping) or depth > _MAX_DEPTH:
        return
    layers = values.get("layers")
    if not isinstance(layers, list):
        yield str(config.get("class_name")), str(values.get("name")), values
        return
    for layer in layers:
        yield from _flatten(layer, depth + 1)


# ---- names ----


@dataclass(kw_only=True)
class _Content:
    """What the other process found.

    Attributes:
        arrays: By their path in the file.
        names: Layers' names by the path of their group.
        config: The model's config as JSON.
        numbered: Whether groups are called by class and variables by number, as Keras 3 does; in the older
            files both have their names.
    """

    arrays: Arrays = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    config: str | None = None
    numbered: bool = False


def _by_path(content: _Content) -> Iterator[tuple[str, NDArray[Any]]]:
    """Layer and variable are the last parts of a path: ``stem_conv/stem_conv/kernel:0``."""
    for path, array in content.arrays.items():
        parts = path.split("/")
        if len(parts) > 1 and parts[0] != "top_level_model_weights":
            leaf = re.sub(":[0-9]+$", "", parts[-1])
            # Keras 2 gives a depthwise kernel a name of its own.
            yield f"{parts[-2]}/{'kernel' if leaf == 'depthwise_kernel' else leaf}", array


def _by_group(content: _Content) -> Iterator[tuple[str, NDArray[Any]]]:
    """A path has a layer's class and count, and its variable's number: ``layers/conv2d_3/vars/0``."""
    groups: dict[str, Arrays] = {}
    for path, array in content.arrays.items():
        if match := re.fullmatch(r"(.+)/vars/([0-9]{1,4})", path):
            groups.setdefault(match[1], {})[match[2]] = array
    names = {group: content.names[group] for group in groups if group in content.names}
    names = names or _by_position(groups)  # older versions of Keras 3 stored none
    for group, variables in groups.items():
        leaves = _LEAVES.get(_class_of(group), ())
        for number, array in variables.items():
            # Without one of its parameters a norm would have other numbers for the rest.
            is_known = len(variables) == len(leaves) or leaves[1:] == ("bias",)
            leaf = leaves[int(number)] if is_known and int(number) < len(leaves) else number
            yield f"{names.get(group, group.rpartition('/')[2])}/{leaf}", array


def _class_of(group: str) -> str:
    return re.sub("_[0-9]+$", "", group.rpartition("/")[2])


def _by_position(groups: Mapping[str, Arrays]) -> dict[str, str]:
    """Names of an EfficientNet's layers from their order and shapes; empty where it is another network.

    The convolutions of squeeze-excite are those with a bias; what comes before them in a block is its
    expansion. A stage begins where output channels or the kernel's size change, as in B0 to B7.
    """
    parent = next((g.rpartition("/")[0] for g in groups if _class_of(g) == "depthwise_conv2d"), None)
    layers: dict[str, list[str]] = {kind: [] for kind in _LEAVES}
    for group in sorted(groups, key=lambda g: int((re.findall("_([0-9]{1,6})$", g) or ["0"])[0])):
        if group.rpartition("/")[0] == parent:
            layers.setdefault(_class_of(group), []).append(group)
    convs, norms, names = iter(layers["conv2d"]), iter(layers["batch_normalization"]), {}
    stage, layer, before = 0, 0, None
    try:
        names[next(convs)], names[next(norms)] = "stem_conv", "stem_bn"
        for depthwise in layers["depthwise_conv2d"]:
            block = [next(convs)]
            expand = ("expand",) if "1" not in groups[block[0]] else ()
            block += [next(convs) for _ in range(2 + len(expand))]
            shape = groups[block[-1]]["0"].shape[-1:] + groups[depthwise]["0"].shape[:1]
            stage, layer, before = (stage, layer + 1, before) if shape == before else (stage + 1, 0, shape)
            prefix = f"block{stage}{chr(ord('a') + layer)}_"
            names[depthwise] = f"{prefix}dwconv"
            for part in (*(f"{part}_conv" for part in expand), "se_reduce", "se_expand", "project_conv"):
                names[block.pop(0)] = prefix + part
            for part in (*(f"{part}_bn" for part in expand), "bn", "project_bn"):
                names[next(norms)] = prefix + part
        names[next(convs)], names[next(norms)] = "top_conv", "top_bn"
    except (StopIteration, KeyError):
        return {}
    if next(convs, None) or next(norms, None) or len(layers["dense"]) > 1:
        return {}
    return names | dict.fromkeys(layers["dense"], "predictions")


def _canonical(named: Iterable[tuple[str, NDArray[Any]]], config: Mapping[str, Any] | None) -> Arrays:
    """Arrays by the names of `keras.applications`, from those in the file."""
    tensors: Arrays = {}
    for name, array in named:
        if name in tensors:
            raise ModelDirError(f"holds {name} more than once, so it is not one EfficientNet")
        if name.endswith(("/kernel", "/gamma", "/moving_mean")) and array.dtype.kind != "f":
            raise ModelDirError(f"is quantised ({name} is {array.dtype}); save the model before quantize()")
        tensors[name] = array
    if not tensors:
        raise ModelDirError("holds no weights of a Keras model")
    # Keras counts the layers without a name of their own in a session: normalization_3.
    norms = [name.removesuffix("/variance") for name in tensors if name.endswith("/variance")]
    renamed = dict.fromkeys(norms, "normalization") if len(norms) == 1 else {}
    if (head := _classifier(config)) and "predictions/kernel" not in tensors:
        renamed[head] = "predictions"
    layers = [name.rpartition("/")[0] for name in tensors]
    return {
        renamed.get(layer, layer) + name.removeprefix(layer): array
        for layer, (name, array) in zip(layers, tensors.items(), strict=True)
    }


def _classifier(config: Mapping[str, Any] | None) -> str | None:
    """The Dense layer that alone follows an EfficientNet and its average pooling, as ``predictions`` does."""
    layers = list(_flatten(config))
    end = next((index for index, (_, name, _) in enumerate(layers) if name == "top_activation"), len(layers))
    after = [layer for layer in layers[end + 1 :] if not _IDENTITY.fullmatch(layer[0])]
    if [kind for kind, _, _ in after] != ["GlobalAveragePooling2D", "Dense"]:
        return None
    _, name, values = after[1]
    return name if values.get("activation") in (None, "linear", "sigmoid", "softmax") else None


# ---- writing ----


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
    layers = _ordered(tensors)
    if kind == "keras":
        groups = _groups_of(config, layers)
        image = io.BytesIO()
        with h5py.File(image, "w") as file:
            _write_numbered(file, layers, groups)
        # How the model was trained is of no use without the optimizer's state.
        plain = {key: value for key, value in (config or {}).items() if key != "compile_config"}
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(zipfile.ZipInfo(_METADATA), json.dumps({"saved_by": "phiscale"}))
            archive.writestr(zipfile.ZipInfo(_CONFIG), json.dumps(plain))
            archive.writestr(zipfile.ZipInfo(_WEIGHTS), image.getvalue())
        return
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        if kind == "weights.h5":
            _write_numbered(file, layers, _count([(_kind_of(name), name) for name in layers]))
        else:
            _write_named(file, layers)


def _ordered(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Arrays]:
    """Variables by layer, both in Keras' order.

    Raises:
        ModelDirError: A layer is none of an EfficientNet, or lacks a variable.
    """
    found: dict[str, Arrays] = {}
    for name, array in tensors.items():
        layer, _, leaf = name.rpartition("/")
        found.setdefault(layer, {})[leaf] = np.asarray(array)
    if "normalization" not in found:
        raise ModelDirError(
            "keras.applications' network has a Normalization before its stem; add its tensors, "
            "phiscale.weights.hdf5.normalization_tensors(mean, std)"
        )
    found["normalization"].setdefault("count", np.zeros((), np.int32))
    ordered: dict[str, Arrays] = {}
    for layer in sorted(found, key=_place):
        leaves, variables = _LEAVES[_kind_of(layer)], found[layer]
        missing = [leaf for leaf in leaves if leaf not in variables and leaf != "bias"]
        extra = [leaf for leaf in variables if leaf not in leaves]
        if missing or extra:
            raise ModelDirError(f"{layer} {'lacks' if missing else 'has no'} {', '.join(missing or extra)}")
        ordered[layer] = {leaf: variables[leaf] for leaf in leaves if leaf in variables}
    return ordered


def _place(layer: str) -> tuple[int, int, int, str, int]:
    """Sort key of a layer in the order of the network.

    Raises:
        ModelDirError: No EfficientNet of Keras has such a layer.
    """
    match = re.fullmatch(r"block([0-9]{1,4})([a-z]{1,4})_(\w+)", layer)
    if match and match[3] in _PARTS:
        return _OUTER.index(""), int(match[1]), len(match[2]), match[2], _PARTS.index(match[3])
    if layer not in _OUTER or not layer:
        raise ModelDirError(f"keras.applications' EfficientNet has no layer {layer or 'without a name'}")
    return _OUTER.index(layer), 0, 0, "", 0


def _kind_of(layer: str) -> str:
    if layer.endswith("bn"):
        return "batch_normalization"
    if layer.endswith("dwconv"):
        return "depthwise_conv2d"
    return {"normalization": "normalization", "predictions": "dense"}.get(layer, "conv2d")


def _count(layers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Layer's name -> its group: its class, with a count from the second one on."""
    counts: dict[str, int] = {}
    groups = {}
    for kind, name in layers:
        number = counts[kind] = counts.get(kind, -1) + 1
        groups[name] = f"{kind}_{number}" if number else kind
    return groups


def _groups_of(config: Mapping[str, Any] | None, layers: Mapping[str, Arrays]) -> dict[str, str]:
    """Groups of the layers in an archive, which count every layer of the config.

    Raises:
        ModelDirError: The config is not of an archive, or of a network with other layers.
    """
    if config is None or "module" not in config:  # of an older .h5, in which layers are written otherwise
        raise ModelDirError(
            "a .keras archive needs a config that Keras wrote into one; write a .weights.h5 and load it into "
            "keras.applications' network"
        )
    there = [(_snake_case(kind), name) for kind, name, _ in _flatten(config)]
    norms = [name for kind, name in there if kind == "normalization"]
    there = [(kind, "normalization" if [name] == norms else name) for kind, name in there]
    weighted = {name: kind for kind, name in there if kind in _LEAVES}
    # Where a model is inside another, their layers are counted apart.
    if weighted != {name: _kind_of(name) for name in layers} or len(there) != len(config["config"]["layers"]):
        raise ModelDirError("the config is not of one EfficientNet with these layers; write a .weights.h5")
    return _count(there)


def _snake_case(name: str) -> str:
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


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
        prefix = "depthwise_" if _kind_of(layer) == "depthwise_conv2d" else ""
        names = {f"{layer}/{prefix}{leaf}:0": array for leaf, array in variables.items()}
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, array in names.items():
            group.create_dataset(name, data=array)


# ---- the other process ----

_CODE = "import sys; sys.path[:] = sys.argv[2:]; from phiscale.weights import hdf5; hdf5._send(sys.argv[1])"
_SECONDS, _BYTES_PER_SECOND = 30.0, 1e6
_MAX_DEPTH, _MAX_OBJECTS = 16, 100_000
_MAX_CONFIG, _MAX_NAME = 64 << 20, 1024
# Weights shrink by a tenth or so; what unpacks to many times its file was made to fill the memory.
_MAX_EXPANSION, _SLACK = 20, 1 << 20
_FILTERS = {1, 2, 3}  # deflate, shuffle, checksum; HDF5 loads a plug-in for a number that it does not know


def _receive(path: Path) -> _Content:
    """Have another process read the file, and collect what it sends.

    Raises:
        ModelDirError: It found the file wrong, died of it, or did not come to an end.
    """
    entries = [entry or str(Path.cwd()) for entry in sys.path]
    command = [sys.executable, "-I", "-c", _CODE, str(path.absolute()), *entries]
    limit = _SECONDS + path.stat().st_size / _BYTES_PER_SECOND
    content = _Content()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        timer = threading.Timer(limit, child.kill)
        timer.start()
        try:
            while not _take(child.stdout, content, path):
                pass
        finally:
            timer.cancel()
            child.kill()
    return content


def _take(stream: IO[bytes], content: _Content, path: Path) -> bool:
    """Take one message, a line of JSON and the bytes of an array. Returns whether it was the last one."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ModelDirError(f"{path} is damaged: HDF5 crashes on it or does not come to an end; {_AGAIN}")
    message: dict[str, Any] = json.loads(line)
    if "error" in message:
        raise ModelDirError(f"{path} {message['error']}")
    if "array" in message:
        array: NDArray[Any] = np.empty(message["shape"], np.dtype(message["dtype"]))
        view = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while len(view) and (count := stream.readinto(view)):  # type: ignore[attr-defined]
            view = view[count:]
        content.arrays[message["array"]] = array
    elif "name" in message:
        content.names[message["group"]] = message["name"]
    else:
        content.config, content.numbered = message["config"], message["numbered"]
        return True
    return False


def _send(path: str) -> None:
    """What the other process does: read the file and send messages, the last one an error or the end."""
    out = sys.stdout.buffer
    try:
        end = _Reader(out=out).read(Path(path))
    except ModelDirError as error:
        end = {"error": str(error)}
    except Exception as error:
        # HDF5 and zipfile fail on a damaged file with whatever its first wrong byte leads to.
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error  # without the quotes
        text = str(reason).strip().partition("\n")[0][:200] or type(error).__name__
        end = {"error": f"is truncated or damaged ({text}); {_AGAIN}"}
    if "error" in end:  # it may hold a name from the file
        end = {"error": "".join(c if c.isprintable() else "?" for c in end["error"])}
    out.write(json.dumps(end).encode() + b"\n")
    out.flush()


@dataclass(kw_only=True)
class _Reader:
    """Sends what a file holds, as messages, and checks every part before it is read."""

    out: IO[bytes]
    h5py: Any = field(default_factory=lambda: importlib.import_module("h5py"))
    objects: int = 0
    budget: int = 0

    def read(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as file:
            return self._archive(file) if file.read(2) == b"PK" else self._hdf5(path, path.stat().st_size)

    def _archive(self, file: IO[bytes]) -> dict[str, Any]:
        with zipfile.ZipFile(file) as archive:
            if not {_WEIGHTS, _CONFIG} <= set(archive.namelist()):
                raise ModelDirError(f"is a zip archive without {_CONFIG} and {_WEIGHTS}, so not of Keras")
            for info in (archive.getinfo(_CONFIG), archive.getinfo(_WEIGHTS)):
                if info.file_size > _MAX_EXPANSION * info.compress_size + _SLACK:
                    raise ModelDirError(
                        f"claims more data than it holds ({info.filename}), so it is not read"
                    )
            if archive.getinfo(_CONFIG).file_size > _MAX_CONFIG:
                raise ModelDirError(
                    f"has a {_CONFIG} of more than {_MAX_CONFIG >> 20} MiB, so it is not read"
                )
            config, weights = archive.read(_CONFIG).decode("utf-8"), archive.read(_WEIGHTS)
        return {**self._hdf5(io.BytesIO(weights), len(weights)), "config": config}

    def _hdf5(self, source: Path | IO[bytes], size: int) -> dict[str, Any]:
        self.budget = _MAX_EXPANSION * size + _SLACK
        with self.h5py.File(source, "r") as file:
            root, named = file, "layer_names" in file.attrs or "layer_names0" in file.attrs
            if not named and "model_weights" in file:
                root, named = self._item(file, "model_weights", ""), True
            config = self._text(file, "model_config", _MAX_CONFIG)
            self._walk(root, "", numbered=not named)
        return {"numbered": not named, "config": config}

    def _walk(self, group: Any, path: str, *, numbered: bool) -> None:
        if path.count("/") > _MAX_DEPTH:
            raise ModelDirError("has groups within groups without end, so it is not read")
        for name in group:
            inner = f"{path}/{name}" if path else name
            self.objects += 1
            if self.objects > _MAX_OBJECTS or not name.isprintable():
                raise ModelDirError(f"has more than {_MAX_OBJECTS} parts, or odd names; {_AGAIN}")
            if inner in ("optimizer", "optimizer_weights") or name in (
                "seed_generator",
                "seed_generator_state",
            ):
                continue
            item = self._item(group, name, path)
            if isinstance(item, self.h5py.Dataset):
                self._array(item, inner)
            elif isinstance(item, self.h5py.Group):
                if numbered and name == "vars" and (text := self._text(item, "name", _MAX_NAME)):
                    self._message({"group": path, "name": text})
                self._walk(item, inner, numbered=numbered)

    def _item(self, group: Any, name: str, path: str) -> Any:
        if not isinstance(group.get(name, getlink=True), self.h5py.HardLink):
            raise ModelDirError(f"has a link in place of data ({path}/{name}), which is not followed")
        return group[name]

    def _text(self, item: Any, name: str, limit: int) -> str | None:
        if name not in item.attrs:
            return None
        text = item.attrs[name]
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if not isinstance(text, str) or len(text) > limit or (limit == _MAX_NAME and not text.isprintable()):
            raise ModelDirError(f"has an attribute {name} that is no text, or a very long one; {_AGAIN}")
        return text

    def _array(self, item: Any, path: str) -> None:
        self._check(item, path)
        array = np.asarray(item[()])
        if array.dtype.kind == "V":
            array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        self._message({"array": path, "dtype": array.dtype.str, "shape": item.shape})
        self.out.write(array.tobytes())

    def _check(self, item: Any, path: str) -> None:
        if item.external or item.is_virtual:
            raise ModelDirError(f"keeps data in another file ({path}), which is not opened")
        plan = item.id.get_create_plist()
        if not {plan.get_filter(index)[0] for index in range(plan.get_nfilters())} <= _FILTERS:
            raise ModelDirError(f"is packed in a way that is not read ({path}); store it plain or with gzip")
        # numpy has no bfloat16, so Keras stores it as two bytes without a meaning, and says so beside them.
        is_brain = item.dtype.str == "|V2" and item.attrs.get("dtype") == "bfloat16"
        if item.shape is None or not (is_brain or (item.dtype.kind in "fiu" and item.dtype.itemsize <= 8)):
            raise ModelDirError(f"holds {item.dtype} where numbers are expected ({path})")
        # A chunk is unpacked as a whole, and may be larger than the array.
        size = max(math.prod(item.shape), math.prod(item.chunks or ())) * item.dtype.itemsize
        self.budget -= size
        is_empty = bool(math.prod(item.shape)) and not item.id.get_storage_size()
        if self.budget < 0 or is_empty:
            raise ModelDirError(f"claims more data than it holds ({path}, {item.shape}), so it is not read")

    def _message(self, message: Mapping[str, Any]) -> None:
        self.out.write(json.dumps(message).encode() + b"\n")
