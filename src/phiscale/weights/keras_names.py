"""Layers and variables of an EfficientNet of Keras: their names, groups and order in its files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiscale.errors import ModelDirError
from phiscale.weights.hdf5_process import Content

__all__ = [
    "IDENTITY",
    "Arrays",
    "by_group",
    "by_path",
    "canonical",
    "class_of",
    "count",
    "flatten",
    "groups_of",
    "kind_of",
    "ordered",
]

Arrays = dict[str, NDArray[Any]]

_MAX_DEPTH = 16

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
IDENTITY = re.compile(
    r"InputLayer|Identity|Dropout|SpatialDropout2D|Gaussian(Noise|Dropout)|Random(?!Crop)\w+"
)


def flatten(config: Any, depth: int = 0) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Class, name and values of every layer in the order of the model, models inside it taken apart."""
    values = config.get("config") if isinstance(config, Mapping) else None
    if not isinstance(values, Mapping) or depth > _MAX_DEPTH:
        return
    layers = values.get("layers")
    if not isinstance(layers, list):
        yield str(config.get("class_name")), str(values.get("name")), values
        return
    for layer in layers:
        yield from flatten(layer, depth + 1)


def by_path(content: Content) -> Iterator[tuple[str, NDArray[Any]]]:
    """Layer and variable are the last parts of a path: ``stem_conv/stem_conv/kernel:0``."""
    for path, array in content.arrays.items():
        parts = path.split("/")
        if len(parts) > 1 and parts[0] != "top_level_model_weights":
            leaf = re.sub(":[0-9]+$", "", parts[-1])
            # Keras 2 gives a depthwise kernel a name of its own.
            yield f"{parts[-2]}/{'kernel' if leaf == 'depthwise_kernel' else leaf}", array


def by_group(content: Content) -> Iterator[tuple[str, NDArray[Any]]]:
    """A path has a layer's class and count, and its variable's number: ``layers/conv2d_3/vars/0``."""
    groups: dict[str, Arrays] = {}
    for path, array in content.arrays.items():
        if match := re.fullmatch(r"(.+)/vars/([0-9]{1,4})", path):
            groups.setdefault(match[1], {})[match[2]] = array
    names = {group: content.names[group] for group in groups if group in content.names}
    names = names or _by_position(groups)  # older versions of Keras 3 stored none
    for group, variables in groups.items():
        leaves = _LEAVES.get(class_of(group), ())
        for number, array in variables.items():
            # Without one of its parameters a norm would have other numbers for the rest.
            is_known = len(variables) == len(leaves) or leaves[1:] == ("bias",)
            leaf = leaves[int(number)] if is_known and int(number) < len(leaves) else number
            yield f"{names.get(group, group.rpartition('/')[2])}/{leaf}", array


def class_of(group: str) -> str:
    """Class of the layer of a group, as Keras spells it: ``depthwise_conv2d``."""
    return re.sub("_[0-9]+$", "", group.rpartition("/")[2])


def _by_position(groups: Mapping[str, Arrays]) -> dict[str, str]:
    """Names of an EfficientNet's layers from their order and shapes; empty where it is another network.

    The convolutions of squeeze-excite are those with a bias; what comes before them in a block is its
    expansion. A stage begins where output channels or the kernel's size change, as in B0 to B7.
    """
    parent = next((g.rpartition("/")[0] for g in groups if class_of(g) == "depthwise_conv2d"), None)
    layers: dict[str, list[str]] = {kind: [] for kind in _LEAVES}
    for group in sorted(groups, key=lambda g: int((re.findall("_([0-9]{1,6})$", g) or ["0"])[0])):
        if group.rpartition("/")[0] == parent:
            layers.setdefault(class_of(group), []).append(group)
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


def canonical(named: Iterable[tuple[str, NDArray[Any]]], config: Mapping[str, Any] | None) -> Arrays:
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
    layers = list(flatten(config))
    end = next((index for index, (_, name, _) in enumerate(layers) if name == "top_activation"), len(layers))
    after = [layer for layer in layers[end + 1 :] if not IDENTITY.fullmatch(layer[0])]
    if [kind for kind, _, _ in after] != ["GlobalAveragePooling2D", "Dense"]:
        return None
    _, name, values = after[1]
    return name if values.get("activation") in (None, "linear", "sigmoid", "softmax") else None


def ordered(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Arrays]:
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
        leaves, variables = _LEAVES[kind_of(layer)], found[layer]
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


def kind_of(layer: str) -> str:
    """Class of a layer by its name, spelt alike."""
    if layer.endswith("bn"):
        return "batch_normalization"
    if layer.endswith("dwconv"):
        return "depthwise_conv2d"
    return {"normalization": "normalization", "predictions": "dense"}.get(layer, "conv2d")


def count(layers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Layer's name -> its group: its class, with a count from the second one on."""
    counts: dict[str, int] = {}
    groups = {}
    for kind, name in layers:
        number = counts[kind] = counts.get(kind, -1) + 1
        groups[name] = f"{kind}_{number}" if number else kind
    return groups


def groups_of(config: Mapping[str, Any] | None, layers: Mapping[str, Arrays]) -> dict[str, str]:
    """Groups of the layers in an archive, which count every layer of the config.

    Raises:
        ModelDirError: The config is not of an archive, or of a network with other layers.
    """
    if config is None or "module" not in config:  # of an older .h5, in which layers are written otherwise
        raise ModelDirError(
            "a .keras archive needs a config that Keras wrote into one; write a .weights.h5 and load it into "
            "keras.applications' network"
        )
    there = [(_snake_case(kind), name) for kind, name, _ in flatten(config)]
    norms = [name for kind, name in there if kind == "normalization"]
    there = [(kind, "normalization" if [name] == norms else name) for kind, name in there]
    weighted = {name: kind for kind, name in there if kind in _LEAVES}
    # Where a model is inside another, their layers are counted apart.
    if weighted != {name: kind_of(name) for name in layers} or len(there) != len(config["config"]["layers"]):
        raise ModelDirError("the config is not of one EfficientNet with these layers; write a .weights.h5")
    return count(there)


def _snake_case(name: str) -> str:
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()
