"""Baselines and published networks as data."""

from __future__ import annotations

import difflib
from pathlib import Path

from phiscale.errors import SpecError
from phiscale.families.efficientnet import EFFICIENTNET
from phiscale.families.efficientnet_lite import EFFICIENTNET_LITE
from phiscale.families.mobilenet import MOBILENET
from phiscale.families.resnet import RESNET
from phiscale.spec import NetworkSpec

__all__ = ["FAMILIES", "get_spec", "list_specs"]

FAMILIES: dict[str, dict[str, NetworkSpec]] = {
    "efficientnet": EFFICIENTNET,
    "efficientnet_lite": EFFICIENTNET_LITE,
    "mobilenet": MOBILENET,
    "resnet": RESNET,
}


def get_spec(name: str | Path | NetworkSpec) -> NetworkSpec:
    """A network by name, or a user's own from a JSON file.

    Args:
        name: A name from `list_specs`, a path that ends in ``.json``, or a spec, which is returned.

    Raises:
        SpecError: No such name, or the file holds no valid spec.

    Examples:
        >>> get_spec("efficientnet_b4").image_size
        (380, 380)
    """
    if isinstance(name, NetworkSpec):
        return name
    text = str(name)
    if text.endswith(".json"):
        return NetworkSpec.read(text)
    specs = {key: spec for family in FAMILIES.values() for key, spec in family.items()}
    if text not in specs:
        close = difflib.get_close_matches(text, specs, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SpecError(
            f"no network is named {text!r}; {hint}`phiscale models` or list_specs() names all; "
            "or give a .json file"
        )
    return specs[text]


def list_specs(family: str | None = None) -> list[str]:
    """The names that `get_spec` knows, in the order of size within each family.

    Args:
        family: One of ``efficientnet``, ``efficientnet_lite``, ``mobilenet``, ``resnet``; None for all.

    Raises:
        SpecError: No such family.

    Examples:
        >>> list_specs("mobilenet")
        ['mobilenet_v1', 'mobilenet_v2']
    """
    if family is None:
        return [name for specs in FAMILIES.values() for name in specs]
    if family not in FAMILIES:
        raise SpecError(f"no family is named {family!r}; known: {', '.join(FAMILIES)}")
    return list(FAMILIES[family])
