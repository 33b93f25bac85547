"""int8 on networks that are trained: within half a point of fp32, in less than a third of the bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from benchmarks.int8_accuracy import MAX_DROP, MAX_SHARE, measure
from PIL import Image
from torchvision import datasets

import phiscale as ps
from phiscale.deploy.samples import DEMO_DATA

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# Where torchvision's FashionMNIST/raw lies; Debian has it as the package dataset-fashion-mnist.
FASHION_MNIST = os.environ.get("PHISCALE_FASHION_MNIST", "")
TRAINED_ON, TESTED_ON = 6000, 3000


def require_cheap(result: dict[str, Any]) -> None:
    int8 = result["precisions"]["int8"]
    assert int8["is_within_max_drop"]
    assert int8["drop"] <= MAX_DROP
    assert int8["share_of_fp32"] <= MAX_SHARE


def test_emoji(tmp_path: Path) -> None:
    trained = {"epochs": 8, "early_stopping_patience": 0, "augment.crop_scale": (0.6, 1.0)}
    model = ps.fit(
        DEMO_DATA,
        tmp_path / "model",
        weights="lite0-warm-start",
        image_size=128,
        overrides=trained,
        val_fraction=0,
        progress=False,
    )
    result = measure(model, DEMO_DATA)
    assert result["precisions"]["fp32"]["top1"] > 0.75
    require_cheap(result)


@pytest.mark.skipif(not FASHION_MNIST, reason="PHISCALE_FASHION_MNIST does not say where Fashion-MNIST is")
def test_fashion_mnist(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for split, count in (("train", TRAINED_ON), ("test", TESTED_ON)):
        published = datasets.FashionMNIST(FASHION_MNIST, train=split == "train")
        for index in range(count):
            path = (
                photos
                / split
                / published.classes[published.targets[index]].replace("/", "-")
                / f"{index}.png"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(published.data[index].numpy()).save(path)
    model = ps.fit(photos, tmp_path / "model", overrides={"epochs": 3}, progress=False)
    result = measure(model, photos)
    assert result["precisions"]["fp32"]["top1"] > 0.6
    require_cheap(result)
