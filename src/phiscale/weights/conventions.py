"""What publishers' files do not hold: padding, batch norm and preprocessing, and where each is known from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phiscale.errors import ModelDirError, PhiscaleError
from phiscale.preprocess import Interpolation, Preprocess
from phiscale.spec import NetworkSpec
from phiscale.weights.catalog import Record, records

__all__ = ["Fact", "Folder", "class_names", "preprocess_of", "read_folder", "settings_of", "unknown_settings"]

SETTINGS = ("padding", "norm_eps", "norm_momentum")

_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"
_TENSORFLOW = {"padding": "same", "norm_eps": 1e-3, "norm_momentum": 0.01}
# timm keeps the authors' epsilon and not their momentum.
_TIMM_TF = {**_TENSORFLOW, "norm_momentum": 0.1}
_PYTORCH = {"padding": "symmetric", "norm_eps": 1e-5, "norm_momentum": 0.1}
_PIL_FILTERS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A value and where it is known from.

    Attributes:
        value: None where nothing says it.
        source: A few words, such as ``"config.json beside the file"``.
    """

    value: Any
    source: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """JSON files beside a file of weights; empty where there are none.

    Attributes:
        config: ``config.json`` of a repository of transformers or timm.
        processor: ``preprocessor_config.json`` of transformers.
    """

    config: Mapping[str, Any]
    processor: Mapping[str, Any]


def read_folder(folder: Path) -> Folder:
    """Read the JSON files of a repository of weights.

    Raises:
        ModelDirError: One of them is there and is no JSON object.
    """
    return Folder(config=_read_json(folder / _CONFIG), processor=_read_json(folder / _PROCESSOR))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDirError(f"cannot read {path}: {error}; copy or download it again") from None
    if not isinstance(content, dict):
        raise ModelDirError(f"{path} holds no JSON object; copy or download it again")
    return content


def settings_of(
    layout: str, spec: NetworkSpec, folder: Folder, *, own: NetworkSpec | None, record: Record | None
) -> dict[str, Fact]:
    """Padding and batch norm that weights were trained with.

    Args:
        layout: Name of the layout.
        spec: The network in the file.
        folder: What lies beside it.
        own: The spec that this project wrote into the file.
        record: The catalog's record of the file.
    """
    if own is not None:
        return _facts({name: getattr(own, name) for name in SETTINGS}, "the spec in the file")
    if record is not None:
        values = {name: getattr(record, name) for name in SETTINGS}
        return _facts(values, f"the catalog's record {record.name}")
    match layout:
        case "torchvision":
            # The large ones were ported from the authors' weights, the small ones trained anew.
            large = spec.name in {f"efficientnet_b{index}" for index in (5, 6, 7)}
            norm = _TENSORFLOW if large else _PYTORCH
            return _facts({**norm, "padding": "symmetric"}, f"torchvision's {spec.name}")
        case "huggingface":
            eps = folder.config.get("batch_norm_eps", 1e-3)
            eps = eps if isinstance(eps, float) and 0 < eps < 1 else 1e-3
            return _facts({**_TENSORFLOW, "norm_eps": eps}, "transformers' EfficientNet")
        case "lukemelas" | "keras" | "article":
            return _facts(_TENSORFLOW, f"all networks of the {layout} layout")
        case "timm" if isinstance(name := folder.config.get("architecture"), str):
            values = _TIMM_TF if name.startswith("tf_") else _PYTORCH
            return _facts(values, f"architecture {name} in {_CONFIG}")
    return unknown_settings()


def unknown_settings() -> dict[str, Fact]:
    """What is said where nothing is known."""
    return {name: Fact(value=None, source="nothing in the file says it") for name in SETTINGS}


def _facts(values: Mapping[str, Any], source: str) -> dict[str, Fact]:
    return {name: Fact(value=values[name], source=source) for name in SETTINGS}


def preprocess_of(
    layout: str,
    spec: NetworkSpec,
    folder: Folder,
    *,
    record: Record | None,
    transform: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    transform_source: str = "",
) -> Fact:
    """The preprocessing that weights were trained with, at the network's own size.

    Args:
        layout: Name of the layout.
        spec: The network in the file.
        folder: What lies beside it.
        record: The catalog's record of the file.
        transform: Mean and std that the layers before a Keras network's stem come to.
        transform_source: Where they are known from.
    """
    if spec.in_channels not in (1, 3):
        return Fact(value=None, source=f"images of {spec.in_channels} channels are the user's own")
    if record is not None:
        return Fact(value=record.preprocess, source=f"the catalog's record {record.name}")
    try:
        if layout == "huggingface" and folder.processor:
            return Fact(value=_of_transformers(folder.processor, spec), source=_PROCESSOR)
        if layout == "timm" and isinstance(folder.config.get("pretrained_cfg"), dict):
            return Fact(
                value=_of_timm(folder.config["pretrained_cfg"]), source=f"pretrained_cfg in {_CONFIG}"
            )
    except (PhiscaleError, TypeError, ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise ModelDirError(f"the preprocessing beside the file cannot be carried out: {error}") from None
    if layout == "keras" and transform is not None:
        base = Preprocess.for_size(spec.image_size)
        return Fact(
            value=replace(base, mean=transform[0], std=transform[1]),
            source=f"{transform_source}; the crop is the authors'",
        )
    known = [entry for entry in records(spec.name) if entry.format == layout and spec.in_channels == 3]
    if known:
        differ = "" if len({entry.preprocess for entry in known}) == 1 else ", of which others differ"
        return Fact(value=known[0].preprocess, source=f"that of {known[0].name}{differ}; not in the file")
    return Fact(
        value=Preprocess.for_size(spec.image_size, channels=spec.in_channels),
        source="the authors' evaluation; not in the file",
    )


def _of_timm(config: Mapping[str, Any]) -> Preprocess:
    size = config["input_size"]
    return Preprocess(
        size=(int(size[1]), int(size[2])),
        resize="squash" if config.get("crop_mode") == "squash" else "crop",
        crop_fraction=float(config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(map(float, config["mean"])),
        std=tuple(map(float, config["std"])),
    )


def _of_transformers(config: Mapping[str, Any], spec: NetworkSpec) -> Preprocess:
    """Image processors of EfficientNet divide by std once more for classification (``include_top``)."""
    size = config.get("size") or {"height": spec.image_size[0], "width": spec.image_size[1]}
    cropped = config.get("crop_size") if config.get("do_center_crop") else None
    side = cropped or size
    scale = 255 * float(config.get("rescale_factor", 1 / 255))
    offset = 1.0 if config.get("rescale_offset") else 0.0
    mean, std = (
        (config["image_mean"], config["image_std"]) if config.get("do_normalize", True) else ([0], [1])
    )
    mean, std = [list(map(float, value)) * (3 if len(value) == 1 else 1) for value in (mean, std)]
    if config.get("include_top", True):
        std = [value * value for value in std]
    return Preprocess(
        size=(int(side["height"]), int(side["width"])),
        resize="crop" if cropped else "squash",
        crop_fraction=min(1.0, int(side["height"]) / int(size["height"])),
        interpolation=_PIL_FILTERS.get(int(config.get("resample", 3)), "bicubic"),
        mean=tuple((value + offset) / scale for value in mean),
        std=tuple(value / scale for value in std),
    )


def class_names(spec: NetworkSpec, folder: Folder) -> Fact:
    """Names of the classes, where something says them."""
    labels = folder.config.get("id2label")
    if isinstance(labels, dict) and len(labels) == spec.num_classes:
        try:
            ordered = [str(labels[key]) for key in sorted(labels, key=int)]
        except (TypeError, ValueError):
            ordered = []
        if len(set(ordered)) == spec.num_classes and not ordered[0].startswith("LABEL_"):
            return Fact(value=tuple(ordered), source=f"id2label in {_CONFIG}")
    names = folder.config.get("label_names")
    if isinstance(names, list) and len(names) == spec.num_classes:
        return Fact(value=tuple(map(str, names)), source=f"label_names in {_CONFIG}")
    if spec.num_classes == 1000:
        from torchvision.models import EfficientNet_B0_Weights

        names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
        return Fact(value=_unique(names), source="ImageNet's order of 1000 classes, as everybody has it")
    return Fact(value=None, source="nothing in the file says them")


def _unique(names: list[str]) -> tuple[str, ...]:
    """ImageNet has two cranes and two maillots; a model's classes need names of their own."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(result)
