"""Published weights of EfficientNets as records: where they are, what they need, what is reported of them.

The records are data, in ``catalog.json`` beside this file; ``tools/make_catalog.py`` makes it from the
publishers' own libraries. Every fact has its source, and what no source says is None.

The licence of a record is what its publisher states for the file. ImageNet's images have terms of their own,
and publishers differ in what they think follows from them.

Examples:
    >>> record = get_record("timm/tf_efficientnet_b0.in1k")
    >>> record.model, record.padding, record.norm_eps, record.image_size
    ('efficientnet_b0', 'same', 0.001, (224, 224))
    >>> record.sources["padding"]
    'timm 1.0.31, the network that timm.create_model builds'
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from phiscale.errors import ModelDirError
from phiscale.families import get_spec
from phiscale.preprocess import Preprocess
from phiscale.spec import Padding

__all__ = ["Layout", "Place", "Record", "best", "get_record", "records"]

Layout = Literal["timm", "torchvision", "lukemelas", "huggingface", "keras", "article", "phiscale"]
Place = Literal["hub", "url", "pypi"]

_DATA = Path(__file__).with_name("catalog.json")
_IMAGENET_CLASSES = 1000
# Licences that allow any use of the file.
_PERMISSIVE = ("Apache-2.0", "BSD-3-Clause", "MIT")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One published file of weights.

    Attributes:
        name: What users type, such as ``"timm/tf_efficientnet_b0.in1k"``.
        model: Our name of the network.
        format: Whose tensor names the file has.
        kind: ``"hub"`` (Hugging Face), ``"url"``, or ``"pypi"`` (inside an installed package).
        location: Repository, address, or ``"module:path in the package"``.
        filename: Name of the file.
        size_bytes: Size as exactly as its source has it (torchvision: to 0.001 MiB); to show, not to check.
        sha256: Checksum of the file, 64 hexadecimal digits.
        sha256_prefix: Its first digits, where the publisher has only those, in the file's name.
        num_classes: Rows of the classifier.
        padding: Of the network that the file is published for. torchvision's B5–B7 are the authors' weights,
            trained with ``"same"``, in a network with ``"symmetric"``.
        norm_eps: Epsilon of batch normalisation.
        norm_momentum: Momentum of batch normalisation in PyTorch's sense, as the publisher's library has it.
        preprocess: The publisher's own evaluation.
        top1: Reported top-1 accuracy on ImageNet's validation images in percent, at `image_size`.
        top5: The same for top-5.
        training: Data and recipe in a few words.
        license: SPDX identifier of what the publisher states for the file.
        sources: Field -> where its value is from, for every fact that is not None.
    """

    name: str
    model: str
    format: Layout
    kind: Place
    location: str
    filename: str
    size_bytes: int | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    num_classes: int
    padding: Padding
    norm_eps: float
    norm_momentum: float | None = None
    preprocess: Preprocess
    top1: float | None = None
    top5: float | None = None
    training: str
    license: str | None = None
    sources: Mapping[str, str] = field(repr=False, hash=False)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the evaluation in pixels."""
        return self.preprocess.size


def records(model: str | None = None) -> tuple[Record, ...]:
    """The catalog, by network from small to large, then by publisher.

    Args:
        model: Our name of a network; None for all. A network without published weights has none.
    """
    return tuple(record for record in _catalog().values() if model in (None, record.model))


def get_record(name: str) -> Record:
    """A record by its name.

    Raises:
        ModelDirError: No published weights have this name.
    """
    catalog = _catalog()
    if name not in catalog:
        close = difflib.get_close_matches(name, catalog, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ModelDirError(
            f"no published weights are named {name!r}; {hint}`phiscale weights list` names all, "
            "and hf://user/repository takes any repository"
        )
    return catalog[name]


def best(model: str) -> Record:
    """What ``weights="imagenet"`` means for a network.

    Among the classifiers of ImageNet's 1000 classes that have a reported accuracy and a licence that allows
    any use:

    1. weights that a Python package brings, because they need no download (Lite0–2);
    2. otherwise those measured at the network's own image size, before those of other sizes;
    3. of these the highest reported top-1.

    Training on further images, such as noisy student's on unlabelled JFT-300M, counts like any other; the
    record says so in `training`. The choice depends on nothing that is or is not installed, so that one name
    means the same weights on every machine.

    Args:
        model: Our name of the network.

    Raises:
        ModelDirError: The catalog has no such weights for it.

    Examples:
        >>> best("efficientnet_b0").name, best("efficientnet_lite0").name
        ('timm/tf_efficientnet_b0.ns_jft_in1k', 'pypi/efficientnet_lite0.imagenet')
    """
    candidates = [
        (record, record.top1)
        for record in records(model)
        if record.num_classes == _IMAGENET_CLASSES
        and record.top1 is not None
        and record.license in _PERMISSIVE
    ]
    if not candidates:
        known = ", ".join(dict.fromkeys(record.model for record in records()))
        raise ModelDirError(f"the catalog has no ImageNet weights for {model}; it has some for {known}")
    native = get_spec(model).image_size

    def rank(candidate: tuple[Record, float]) -> tuple[bool, bool, float]:
        record, top1 = candidate
        return record.kind == "pypi", record.image_size == native, top1

    return max(candidates, key=rank)[0]


@lru_cache(maxsize=1)
def _catalog() -> dict[str, Record]:
    data = json.loads(_DATA.read_text(encoding="utf-8"))
    found = [_record(entry, data["citations"]) for entry in data["records"]]
    return {record.name: record for record in found}


def _record(entry: Mapping[str, Any], citations: Mapping[str, str]) -> Record:
    """A record from its JSON, in which a source is the key of a citation."""
    values = {
        "preprocess": Preprocess.from_dict(entry["preprocess"]),
        "sources": {name: citations[key] for name, key in entry["sources"].items()},
    }
    return Record(**{**entry, **values})
