from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_images import CLASSES, make_images, make_model

from malformed import make_malformed
from phiscale.data.decode import decode
from phiscale.data.sources import open_source
from phiscale.data.transforms import EvalTransform, normalize
from phiscale.errors import DataError, ModelDirError
from phiscale.evaluation.evaluate import evaluate
from phiscale.weights.model_dir import load_network, read_config, read_metrics, save

COUNTS = {"ant": 5, "cat": 6, "dog": 7}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", COUNTS)


def test_against_a_plain_loop(model: Path, images: Path) -> None:
    result = evaluate(model, images, batch_size=4)

    net, preprocess = load_network(model), read_config(model).preprocess
    transform = EvalTransform(preprocess)
    hits, expected = 0, []
    for name, count in COUNTS.items():
        for index in range(count):
            pixels = transform(decode(images / name / f"{index:03}.png"))
            with torch.no_grad():
                row = net(normalize(pixels[None], preprocess)).softmax(dim=1)[0]
            hits += CLASSES[int(row.argmax())] == name
            expected.append(row.numpy())

    assert result.num_images == 18
    assert result.top1 == pytest.approx(hits / 18)
    assert 0 < result.top1 < 1  # otherwise a mix-up of classes would not show
    np.testing.assert_allclose(result.probabilities, np.stack(expected), atol=1e-5)
    assert result.classes == CLASSES
    assert [item.support for item in result.per_class] == [0, 6, 7, 5]
    assert result.labels.tolist() == [3] * 5 + [1] * 6 + [2] * 7
    assert result.images_per_second > 0
    assert result.network_images_per_second > 0

    samples = list(result.samples())
    assert samples[0].id == "ant/000.png"
    assert samples[0].label == "ant"
    assert samples[0].confidence == pytest.approx(float(expected[0].max()), abs=1e-5)
    assert sum(sample.label == sample.predicted for sample in samples) == hits


def test_metrics_file_and_card(model: Path, images: Path) -> None:
    result = evaluate(model, images)
    assert result.path == model / "metrics.json"
    content = json.loads(result.path.read_text())
    assert content == read_metrics(model)
    assert {**json.loads(json.dumps(result.to_dict())), **content} == content
    assert content["num_images"] == 18
    assert content["data"]["location"] == str(images)
    assert content["data"]["split"] == "all"
    assert {"created", "phiscale", "torch", "python", "weights_sha256", "settings"} <= set(content)
    assert f"{result.top1:.2%}" in (model / "README.md").read_text()


def test_unknown_class_is_named(model: Path, images: Path) -> None:
    make_images(images, {"wolf": 2, "bear": 2})
    with pytest.raises(DataError, match="does not know the classes bear, wolf; it knows owl, cat, dog, ant"):
        evaluate(model, images)


# -- splits ------------------------------------------------------------------------------------


def test_auto_takes_test_then_val_then_all(model: Path, tmp_path: Path) -> None:
    root = make_images(
        tmp_path / "a", {f"{part}/{name}": 2 for part in ("train", "val") for name in ("ant", "cat")}
    )
    assert evaluate(model, root).data["split"] == "val"
    make_images(root, {"test/ant": 1, "test/cat": 2})
    result = evaluate(model, root)
    assert result.data["split"] == "test"
    assert result.num_images == 3
    assert evaluate(model, root, split="all").num_images == 11
    assert evaluate(model, root, split="train").num_images == 4


def test_val_is_what_training_held_out(images: Path, tmp_path: Path) -> None:
    rule = {"val_fraction": 0.34, "seed": 11, "split_file": None, "hold_out": 0}
    model = make_model(tmp_path / "model", provenance={"data": {"location": str(images), **rule}})
    held_out = open_source(images, val_fraction=0.34, seed=11).split("val")
    other = open_source(images, val_fraction=0.34, seed=12).split("val")
    ids = tuple(record.id for record in held_out)
    assert ids != tuple(record.id for record in other)

    for split in ("auto", "val"):
        result = evaluate(model, images, split=split)
        assert result.ids == ids
        assert result.data == {"location": str(images), "split": "val", **rule}

    # The data went to another place: by name it is the same split, of its own accord all images.
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    assert evaluate(model, moved, split="val").ids == ids
    assert evaluate(model, moved).num_images == 18


def test_the_same_place_by_another_name(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"val_fraction": 0.5, "seed": 0, "split_file": None}
    model = make_model(tmp_path / "model", provenance={"data": {"location": str(images), **rule}})
    monkeypatch.chdir(tmp_path)
    assert evaluate(model, "images").data["split"] == "val"


def test_no_split_is_made_up(model: Path, images: Path) -> None:
    for split in ("val", "test"):
        with pytest.raises(DataError, match=f"has no {split} split; evaluate with split all"):
            evaluate(model, images, split=split)


def test_limit_is_spread_over_the_classes(model: Path, images: Path) -> None:
    result = evaluate(model, images, limit=6)
    assert result.num_images == 6
    assert {sample.label for sample in result.samples()} == {"ant", "cat", "dog"}
    assert evaluate(model, images, limit=100).num_images == 18


# -- what goes wrong ---------------------------------------------------------------------------


def test_a_bad_file_is_listed(model: Path, images: Path) -> None:
    clean = evaluate(model, images)
    (images / "cat" / "0000.jpg").write_text("no picture")
    (images / "dog" / "zero.png").write_bytes(b"")
    result = evaluate(model, images, batch_size=3)
    assert {item.id for item in result.skipped} == {"cat/0000.jpg", "dog/zero.png"}
    assert all(item.reason for item in result.skipped)
    assert result.top1 == clean.top1
    assert result.ids == clean.ids
    assert result.to_dict()["skipped"][0]["id"] == "cat/0000.jpg"
    with pytest.raises(DataError, match=r"cat/0000\.jpg: .*repair or remove it"):
        evaluate(model, images, strict=True)


def test_a_hundred_malformed_files(model: Path, images: Path) -> None:
    bad = make_malformed(images / "cat")
    result = evaluate(model, images)
    assert len(bad) >= 90
    skipped = {Path(item.id).name for item in result.skipped}
    listed = {record.id for record in open_source(images, val_fraction=0).records}
    assert result.num_images + len(result.skipped) == len(listed)
    assert not [name for name in skipped if name.startswith("odd_")]
    assert not [name for name in result.ids if Path(name).name.startswith("bad_")]
    assert set(COUNTS.values()) <= {item.support for item in result.per_class} | {6}


def test_nothing_can_be_read(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "bad"
    for name in ("ant", "cat"):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_text("x")
    with pytest.raises(DataError, match=r"none of the 2 images could be read, such as ant/a\.png: "):
        evaluate(model, root)
    assert not (model / "metrics.json").exists()


def test_a_broken_network(model: Path, images: Path) -> None:
    net = load_network(model)
    torch.nn.init.constant_(net.classifier.bias, math.nan)  # type: ignore[arg-type]
    save(net, model, classes=CLASSES)
    with pytest.raises(ModelDirError, match="NaN or infinity for 18 of 18 images"):
        evaluate(model, images)


def test_a_directory_that_cannot_be_written(
    model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("phiscale.weights.files.write_text", refuse)
    result = evaluate(model, images)
    assert result.path is None
    assert result.num_images == 18


def test_weights_exchanged_during_the_run(model: Path, images: Path) -> None:
    def exchange(done: int, total: int) -> None:
        if done == total:
            net = load_network(model)
            torch.nn.init.zeros_(net.classifier.weight)  # type: ignore[arg-type]
            save(net, model, classes=CLASSES)

    evaluate(model, images, progress=exchange)
    assert read_metrics(model) is None  # they are not the present weights'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split must be one of auto, train, val, test, all; got 'dev'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ],
)
def test_wrong_arguments(model: Path, images: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(model, images, **options)  # type: ignore[arg-type]


def test_workers_and_batch_size_change_nothing(model: Path, images: Path) -> None:
    (images / "cat" / "bad.png").write_text("x")
    one = evaluate(model, images, batch_size=5)
    two = evaluate(model, images, batch_size=7, workers=2)
    assert one.ids == two.ids
    assert one.skipped == two.skipped
    np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-5)


def test_progress(model: Path, images: Path) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(model, images, batch_size=8, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(8, 18), (16, 18), (18, 18)]


def test_images_of_another_place_get_a_file_of_their_own(images: Path, tmp_path: Path) -> None:
    model = make_model(
        tmp_path / "model", provenance={"data": {"location": str(images), "val_fraction": 0.34}}
    )
    first = evaluate(model, images, split="all")
    assert first.path == model / "metrics.json"
    before = {name: (model / name).read_bytes() for name in ("metrics.json", "README.md")}
    copy = tmp_path / "a copy"
    shutil.copytree(images, copy)
    second = evaluate(model, copy, limit=3)
    assert second.path == model / "metrics-a-copy-all.json"
    assert json.loads(second.path.read_text())["num_images"] == 3
    assert {name: (model / name).read_bytes() for name in before} == before
