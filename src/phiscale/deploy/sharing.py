"""What a model says in public: provenance and metrics without the paths and file names of a machine.

Training notes where its images lay, so that evaluation finds the same held-out ones; on another machine that
is of no use, and a path often has somebody's name in it. A path keeps its last part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

from phiscale.weights.catalog import records

__all__ = ["shareable_metrics", "shareable_provenance", "short_name"]

# Keys whose texts name a place on the user's machine, even where they are no absolute path.
_PLACES = ("location", "split_file", "weights")
_ROOT = r"(?:file://)?(?:~[\w.-]*[/\\]|[A-Za-z]:[/\\]|\\\\|/)"
_ABSOLUTE = re.compile(_ROOT + r".+")
# Within a sentence a path ends at a space; what contains one is found by its key.
_MENTIONED = re.compile(r"(?<![\w./\\:-])" + _ROOT + r"[^\s'\"<>|:;,()]+")


def short_name(place: str) -> str:
    """The last part of a path, or of an address; ``torchvision:NAME:ROOT`` keeps the name.

    Examples:
        >>> short_name("/home/ada/images/pets"), short_name("torchvision:FashionMNIST:data")
        ('pets', 'torchvision:FashionMNIST')
    """
    if place.startswith("torchvision:"):
        return ":".join(place.split(":")[:2])
    # Windows takes both kinds of slash, and a drive before them.
    return PureWindowsPath(place.removesuffix("/")).name or "."


def shareable_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance without the places that it names.

    Args:
        provenance: Plain JSON values.
    """
    return {key: _shared(value, key, _places(provenance)) for key, value in provenance.items()}


def shareable_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics without the place of the images and without the names of those that could not be read.

    Args:
        metrics: Content of ``metrics.json``.
    """
    shared, places = dict(metrics), _places(metrics)
    for key in ("data", "settings"):
        if key in shared:
            shared[key] = _shared(shared[key], key, places)
    skipped = shared.get("skipped")
    if isinstance(skipped, list):
        shared["skipped"] = [
            {"id": f"image {number}", "reason": _shared(item.get("reason"), "reason", places)}
            for number, item in enumerate(skipped, start=1)
            if isinstance(item, Mapping)
        ]
    return shared


def _places(values: Mapping[str, Any]) -> dict[str, str]:
    """Every place that is named under one of its keys, with what to call it; longest first."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _places(value)
        elif key in _PLACES and isinstance(value, str) and not _is_public(value):
            found[value] = short_name(value)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _is_public(weights: str) -> bool:
    """Weights that anybody can have are named in full."""
    return weights.startswith("hf://") or any(record.name == weights for record in records())


def _shared(value: Any, key: str, places: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _shared(item, name, places) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shared(item, key, places) for item in value]
    if not isinstance(value, str):
        return value
    if value in places:
        return places[value]
    if _is_public(value):
        return value
    if _ABSOLUTE.fullmatch(value):
        return short_name(value)
    for place, name in places.items():
        # A sentence that names it; a bare word such as "data" is left alone.
        if "/" in place or "\\" in place:
            value = value.replace(place, name)
    return _MENTIONED.sub(lambda found: short_name(found.group()), value)
