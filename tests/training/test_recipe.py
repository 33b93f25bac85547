"""Recipes: round trips, changes from texts, and errors that name field and fix."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from phiscale.errors import RecipeError
from phiscale.families import get_spec
from phiscale.training.recipe import RECIPES, Recipe, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_round_trips(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name].override({"dropout": 0.3, "seed": 2**62})
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.from_yaml(path) == recipe


def test_every_field_is_explained() -> None:
    texts = Recipe.help()
    assert list(texts) == [field.name for field in dataclasses.fields(Recipe)]
    assert all(text.endswith(".") for text in texts.values())


def test_paper_recipe_is_the_papers() -> None:
    paper = RECIPES["paper"]
    assert (paper.optimizer, paper.learning_rate, paper.learning_rate_batch) == ("rmsprop_tf", 0.016, 256)
    assert (paper.momentum, paper.weight_decay, paper.warmup_epochs) == (0.9, 1e-5, 5.0)
    assert (paper.schedule, paper.decay_rate, paper.decay_epochs) == ("exponential", 0.97, 2.4)
    assert (paper.ema_decay, paper.label_smoothing, paper.epochs) == (0.9999, 0.1, 350)
    assert paper.augment.policy == "autoaugment"


@pytest.mark.parametrize(
    ("variant", "dropout"),
    [("b0", 0.2), ("b1", 0.2), ("b2", 0.3), ("b3", 0.3), ("b4", 0.4), ("b5", 0.4), ("b6", 0.5), ("b7", 0.5)],
)
def test_paper_recipe_leaves_each_variant_its_dropout(variant: str, dropout: float) -> None:
    spec = RECIPES["paper"].apply_to(get_spec(f"efficientnet_{variant}"))
    assert (spec.dropout, spec.drop_path) == (dropout, 0.2)


def test_override_converts_texts() -> None:
    recipe = Recipe().override(
        {
            "learning_rate": "1e-1",
            "epochs": "1_0",
            "grad_checkpointing": "yes",
            "channels_last": "false",
            "dropout": "0.5",
            "drop_path": "none",
            "optimizer": "SGD",
            "augment.policy": "randaugment",
            "augment.magnitude": "5",
        }
    )
    assert (recipe.learning_rate, recipe.epochs, recipe.dropout, recipe.drop_path) == (0.1, 10, 0.5, None)
    assert (recipe.grad_checkpointing, recipe.channels_last, recipe.optimizer) == (True, False, "sgd")
    assert (recipe.augment.policy, recipe.augment.magnitude) == ("randaugment", 5)
    assert type(recipe.epochs) is int


def test_yaml_over_a_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    # YAML 1.1 reads 1e-3 as a text.
    path.write_text("learning_rate: 1e-3\naugment:\n  policy: none\n")
    recipe = Recipe.from_yaml(path, RECIPES["paper"])
    assert recipe == RECIPES["paper"].override({"learning_rate": 0.001, "augment.policy": "none"})
    path.write_text("")
    assert Recipe.from_yaml(path) == Recipe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": "1"}, "learning_rat is not a setting; did you mean learning_rate"),
        ({"augment.polcy": "none"}, r"augment\.polcy is not a setting; did you mean policy"),
        ({"xyz": "1"}, "xyz is not a setting; known: epochs, batch_size"),
        ({"optimizer": "adamww"}, "optimizer must be one of adamw, sgd, rmsprop_tf; did you mean adamw"),
        ({"epochs": "ten"}, "epochs must be a whole number, got 'ten'"),
        ({"epochs": "1.5"}, "epochs must be a whole number"),
        ({"epochs": "0"}, "epochs must be at least 1, got 0"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"learning_rate": "nan"}, "learning_rate must be a number, got 'nan'"),
        ({"learning_rate": 0}, "learning_rate must be above 0, got 0"),
        ({"learning_rate": None}, "learning_rate must be a number, got None"),
        ({"ema_decay": "1"}, r"ema_decay must lie in \[0, 1\), got 1"),
        ({"layer_decay": "2"}, r"layer_decay must lie in \(0, 1\], got 2"),
        ({"channels_last": "maybe"}, "channels_last must be true or false, got 'maybe'"),
        ({"augment": "none"}, "augment must be a mapping"),
        ({"freeze_epochs": 30}, "freeze_epochs 30 leaves none of the 30 epochs"),
        ({"warmup_epochs": 30}, "warmup_epochs 30 must be less than epochs 30; try warmup_epochs 3"),
    ],
)
def test_errors_name_field_and_fix(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe().override(changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [", "is not valid YAML"),
        ("- 1", "must hold settings as NAME: VALUE"),
        ("epoch: 3", "did you mean epochs"),
        ("augment: {policy: nothing}", r"augment\.policy must be one of"),
    ],
)
def test_yaml_errors_name_the_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"mine\.yaml.*{message}"):
        Recipe.from_yaml(path)


def test_missing_file_and_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        Recipe.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="no recipe 'quick'; known: fast, paper, finetune"):
        get_recipe("quick")


def test_differences_are_named() -> None:
    other = Recipe().override({"seed": 5, "augment.magnitude": 3})
    assert set(Recipe().differences(other)) == {"seed", "augment.magnitude"}
    assert Recipe().differences(other)["seed"] == (0, 5)
