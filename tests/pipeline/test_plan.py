from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from smooth_pictures import make_images

import phiscale as ps
from phiscale.errors import BudgetError, DataError, RecipeError, SpecError, TrainingError
from phiscale.pipeline.plan import plan_fit, read_plan


def test_images_smaller_than_the_network_decide_its_size(tmp_path: Path) -> None:
    plan = plan_fit(make_images(tmp_path / "images"))
    assert plan.spec.image_size == (40, 40)  # the shorter side, which is a multiple of 8 already
    assert plan.spec.output_stride == 8  # 40 / 8 = 5 px; 40 / 16 would be 3 px, below 4
    assert plan.preprocess.size == (40, 40)
    assert plan.preprocess.crop_fraction == 1.0
    assert any("40 px and not more" in note for note in plan.notes)
    assert any("strides lowered from 32 to 8" in note for note in plan.notes)


@pytest.mark.parametrize(("side", "stride"), [(24, 4), (32, 8), (64, 16), (96, 16), (128, 32)])
def test_small_images_keep_a_map_of_four_pixels(tmp_path: Path, side: int, stride: int) -> None:
    images = make_images(tmp_path / "images", size=(side, side))
    plan = plan_fit(images)
    assert plan.spec.image_size == (side, side)
    assert plan.spec.output_stride == stride
    assert any(f"strides lowered from 32 to {stride}" in note for note in plan.notes) == (stride < 32)
    kept = plan_fit(images, keep_strides=True)
    assert (kept.spec.output_stride, kept.spec.image_size) == (32, (side, side))
    assert not any("strides" in note for note in kept.notes)
    within = plan_fit(images, budget=ps.Budget(macs=20e6), keep_strides=True)
    assert within.spec.output_stride == 32


def test_the_budget_holds_for_the_network_that_is_trained(tmp_path: Path) -> None:
    budget = ps.Budget(macs=4e6, file_bytes=1e6)
    plan = plan_fit(make_images(tmp_path / "images"), budget=budget)
    cost = ps.complexity(plan.spec)
    assert plan.spec.num_classes == 3
    assert cost.macs <= 4e6
    assert cost.file_bytes <= 1e6
    assert plan.solved is not None
    assert plan.solved.costs["macs"] == cost.macs  # solved with the classes of the data, not 1000
    assert plan.solved.rule.gamma == 1.0


def test_training_memory_is_that_of_the_recipes_batch(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    limit = 40e6
    plan = plan_fit(images, budget=ps.Budget(training_bytes=limit), overrides={"batch_size": 16})
    used = ps.complexity(plan.spec, 16).training_bytes
    assert 0.5 * limit < used <= limit
    assert plan.solved is not None
    assert plan.solved.costs["training_bytes"] == used


def test_large_images_let_the_rule_choose_the_resolution(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", size=(160, 200))
    plan = plan_fit(images, budget=ps.Budget(macs=10e6))
    assert plan.solved is not None
    assert plan.solved.rule == ps.CompoundRule(alpha=1.2, beta=1.1, gamma=1.15)
    assert plan.spec.image_size[0] < 160
    assert plan.spec.output_stride == 32


def test_strides_are_no_lower_than_the_budget_allows(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    roomy = plan_fit(images, budget=ps.Budget(macs=10e6)).spec
    tight = plan_fit(images, budget=ps.Budget(macs=2e6)).spec
    assert (roomy.output_stride, tight.output_stride) == (8, 16)
    assert ps.complexity(tight).macs <= 2e6


def test_image_size_can_be_asked_for(tmp_path: Path) -> None:
    plan = plan_fit(make_images(tmp_path / "images"), image_size=64, budget=ps.Budget(macs=10e6))
    assert plan.spec.image_size == (64, 64)
    assert ps.complexity(plan.spec).macs <= 10e6


def test_grey_images_get_one_channel(tmp_path: Path) -> None:
    plan = plan_fit(make_images(tmp_path / "images", mode="L"))
    assert plan.spec.in_channels == plan.preprocess.channels == 1
    assert any("grey" in note for note in plan.notes)


def test_few_images_make_small_batches_unless_told_otherwise(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    assert plan_fit(images).recipe.batch_size == 8
    assert plan_fit(images, overrides={"batch_size": 12}).recipe.batch_size == 12


def test_recipe_settings_reach_the_network(tmp_path: Path) -> None:
    overrides = {"dropout": 0.4, "drop_path": "0.1", "norm_momentum": 0.2, "epochs": "3"}
    plan = plan_fit(make_images(tmp_path / "images"), overrides=overrides)
    assert (plan.spec.dropout, plan.spec.drop_path, plan.spec.norm_momentum) == (0.4, 0.1, 0.2)
    assert plan.recipe.epochs == 3


def test_yaml_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: 7\naugment:\n  policy: none\n")
    plan = plan_fit(make_images(tmp_path / "images"), recipe=tmp_path / "mine.yaml")
    assert plan.recipe.epochs == 7
    assert plan.recipe.augment.policy == "none"


def test_broken_images_are_left_out_or_stop_it(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    (images / "ash" / "broken.png").write_bytes(b"\x89PNG")
    plan = plan_fit(images)
    assert plan.unusable == ("ash/broken.png",)
    assert "ash/broken.png" not in {record.id for record in plan.source.records}
    with pytest.raises(DataError, match=r"1 of 31 images cannot be used.*ash/broken.png"):
        plan_fit(images, strict=True)


def test_wrong_arguments_say_what_to_do(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    with pytest.raises(DataError, match="does not exist"):
        plan_fit(tmp_path / "nowhere")
    with pytest.raises(SpecError, match="did you mean"):
        plan_fit(images, model="efficientnet_bo")
    with pytest.raises(RecipeError, match="no recipe 'quick'"):
        plan_fit(images, recipe="quick")
    with pytest.raises(BudgetError, match="smallest"):
        plan_fit(images, budget=ps.Budget(macs=10))
    with pytest.raises(SpecError, match="resolution only"):
        plan_fit(images, budget=ps.Budget(macs=1e7), rule="resolution")


def test_weights_fix_the_network(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    spec = dataclasses.replace(plan_fit(images, budget=ps.Budget(macs=2e6)).spec, num_classes=5)
    start = ps.save(ps.create_model(spec), tmp_path / "start")
    plan = plan_fit(images, weights=start)
    assert dataclasses.replace(plan.spec, num_classes=5, norm_momentum=spec.norm_momentum) == spec
    assert plan.recipe.freeze_epochs > 0  # the default is the fine-tuning recipe
    with pytest.raises(SpecError, match="one of the two"):
        plan_fit(images, weights=start, budget=ps.Budget(macs=2e6))


def test_a_plan_is_read_back(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    (images / "elm" / "broken.png").write_bytes(b"")
    plan = plan_fit(images, budget=ps.Budget(macs=2e6), overrides={"seed": 3}, val_fraction=0.3)
    plan.write(tmp_path / "out")
    again = read_plan(tmp_path / "out")
    for name in ("spec", "preprocess", "recipe", "weights", "notes", "unusable", "source"):
        assert getattr(again, name) == getattr(plan, name), name


def test_a_plan_that_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        read_plan(tmp_path)
    images = make_images(tmp_path / "images")
    plan_fit(images).write(tmp_path / "out")
    (images / "oak").rename(images / "fir")
    with pytest.raises(DataError, match="classes"):
        read_plan(tmp_path / "out")
    (tmp_path / "out" / "plan.json").write_text("{")
    with pytest.raises(TrainingError, match="cannot read"):
        read_plan(tmp_path / "out")
    (tmp_path / "out" / "plan.json").write_text(json.dumps({"images": "x"}))
    with pytest.raises(TrainingError, match="cannot read"):
        read_plan(tmp_path / "out")
