from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from phiscale.data.decode import decode
from phiscale.data.transforms import EvalTransform, normalize
from phiscale.deploy.predictor import Prediction, Predictor, load
from phiscale.deploy.runtimes.base import cores
from phiscale.errors import DataError, ModelDirError
from phiscale.weights.model_dir import load_network, read_config
from small_model import make_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(model_dir: Path) -> Predictor:
    return load(model_dir)


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def test_scores_are_the_networks(model_dir: Path, predictor: Predictor) -> None:
    arrays = [picture(seed) for seed in range(5)]
    config, net = read_config(model_dir), load_network(model_dir)
    transform = EvalTransform(config.preprocess)
    batch = torch.stack([transform(decode(array)) for array in arrays])
    with torch.no_grad():
        expected = net(normalize(batch, config.preprocess)).softmax(dim=1)

    for answer, row in zip(predictor.predict(arrays, batch_size=2), expected, strict=True):
        order = row.argsort(descending=True)
        assert answer.labels == tuple(config.classes[index] for index in order)
        assert answer.scores == pytest.approx(row[order].tolist(), abs=1e-5)
        assert sum(answer.scores) == pytest.approx(1.0, abs=1e-5)
        assert answer.error is None


def test_every_kind_of_input_is_the_same_picture(predictor: Predictor, tmp_path: Path) -> None:
    array = picture(1)
    path = tmp_path / "p.png"
    Image.fromarray(array).save(path)
    inputs: list[Any] = [path, str(path), path.read_bytes(), Image.fromarray(array), array]
    answers = predictor.predict(inputs)
    assert [answer.source for answer in answers] == [str(path), str(path), "image 2", "image 3", "image 4"]
    assert all(answer.labels == answers[0].labels for answer in answers)
    for answer in answers:
        assert answer.scores == pytest.approx(answers[0].scores, abs=1e-6)


def test_grey_model(tmp_path: Path) -> None:
    grey = load(make_model(tmp_path, channels=1))
    colour, flat = picture(1), Image.fromarray(picture(1)).convert("L")
    answers = grey.predict([colour, flat, np.asarray(flat)])
    assert all(answer.error is None for answer in answers)
    assert all(answer.scores == pytest.approx(answers[0].scores, abs=1e-6) for answer in answers)


def test_one_image_alone_and_a_batch_array(predictor: Predictor, tmp_path: Path) -> None:
    array = picture(1)
    path = tmp_path / "p.png"
    Image.fromarray(array).save(path)
    for single in (array, path, str(path), path.read_bytes(), Image.fromarray(array)):
        assert len(predictor.predict(single)) == 1
    assert len(predictor.predict(np.stack([array, array, array]))) == 3


def test_a_bad_image_costs_one_answer(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    inputs: list[Any] = [
        picture(0),
        tmp_path / "none.png",
        picture(1),
        tmp_path / "text.jpg",
        b"",
        picture(2),
    ]
    answers = predictor.predict(inputs, batch_size=2)
    assert [answer.error is None for answer in answers] == [True, False, True, False, False, True]
    alone = predictor.predict([picture(1)])[0]
    assert answers[2].labels == alone.labels
    assert answers[2].scores == pytest.approx(alone.scores, abs=1e-6)
    assert answers[1].labels == ()
    assert answers[1].scores == ()
    assert "no such file or folder" in (answers[1].error or "")
    assert str(tmp_path) not in (answers[1].error or "")  # the source has it already


def test_only_bad_images(predictor: Predictor) -> None:
    assert [answer.error is None for answer in predictor.predict([b"x", b"y"])] == [False, False]
    assert predictor.predict([]) == []


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_top_k_is_clipped(predictor: Predictor, top_k: int, count: int) -> None:
    [answer] = predictor.predict([picture(0)], top_k=top_k)
    assert len(answer.labels) == len(answer.scores) == count
    assert list(answer.scores) == sorted(answer.scores, reverse=True)


@pytest.mark.parametrize("name", ["top_k", "batch_size"])
def test_wrong_numbers_are_said_at_once(predictor: Predictor, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} must be at least 1, got 0"):
        predictor.stream([], **{name: 0})  # type: ignore[arg-type]


def test_start_goes_on_with_the_numbers(predictor: Predictor) -> None:
    answers = list(predictor.stream([picture(0), b"x", picture(1)], start=100))
    assert [answer.source for answer in answers] == ["image 100", "image 101", "image 102"]
    assert answers[2].scores == pytest.approx(predictor.predict(picture(1))[0].scores, abs=1e-6)
    with pytest.raises(DataError, match="start must be at least 0, got -1"):
        predictor.stream([], start=-1)


def test_stream_keeps_order_and_reads_a_bounded_number_ahead(predictor: Predictor) -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        for index in itertools.count():
            taken += 1
            yield picture(index % 3)

    answers = list(itertools.islice(predictor.stream(endless(), batch_size=4), 30))
    expected = predictor.predict([picture(index) for index in range(3)])
    for index, answer in enumerate(answers):
        assert answer.source == f"image {index}"
        assert answer.scores == pytest.approx(expected[index % 3].scores, abs=1e-6)
    assert taken <= 30 + 2 * cores() * 4


def test_leaving_a_stream_early_stops_its_threads(predictor: Predictor) -> None:
    stream = predictor.stream((picture(index) for index in itertools.count()), batch_size=2)
    next(stream)
    assert any(thread.name.startswith("predict") for thread in threading.enumerate())
    stream.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("predict") for thread in threading.enumerate())


def test_an_error_of_the_caller_comes_through(predictor: Predictor) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield picture(0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(predictor.stream(broken()))
    assert not any(thread.name.startswith("predict") for thread in threading.enumerate())


def test_fast_and_exact_decoding(predictor: Predictor) -> None:
    """The pixels differ a little, which is measured; `exact` takes those of training."""
    photographs = []
    for turn in range(1, 9):
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = turn
        Image.fromarray(skimage.data.astronaut()).save(file, "JPEG", exif=exif)  # type: ignore[no-untyped-call]
        photographs.append(file.getvalue())
    exact = predictor.predict(photographs, exact=True)
    pixels = [decode(photograph) for photograph in photographs]
    assert [answer.scores for answer in exact] == [answer.scores for answer in predictor.predict(pixels)]

    model = load(predictor.model.path)
    fast = model.predict(photographs)
    assert model.fast_decoding is None  # too few to measure
    assert fast != exact
    for answer, wanted in zip(fast, exact, strict=True):
        assert answer.scores == pytest.approx(wanted.scores, abs=0.02)
    model.predict(photographs * 10, exact=True)
    assert model.fast_decoding is None
    measured = load(predictor.model.path)
    measured.predict([*photographs * 10, b"broken"])
    assert measured.fast_decoding is not None
    assert measured.fast_decoding.images == 4
    assert 0 < measured.fast_decoding.grey_levels < 1


def test_a_network_of_nan_is_said(model_dir: Path) -> None:
    predictor = Predictor(
        read_config(model_dir), lambda images: np.full((len(images), 3), np.nan, dtype=np.float32)
    )
    with pytest.raises(ModelDirError, match="gives NaN"):
        predictor.predict([picture(0)])


def test_prediction_is_plain() -> None:
    answer = Prediction(source="a", labels=("x",), scores=(0.5,))
    assert answer.to_dict() == {"source": "a", "labels": ["x"], "scores": [0.5], "error": None}


def test_load_says_what_is_wrong(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"no runtime is named 'tensorrt'; there are: auto, torch"):
        load(model_dir, runtime="tensorrt")
    with pytest.raises(ModelDirError, match="does not exist"):
        load(tmp_path / "none")


def test_repositories_of_the_hub_have_a_user(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match="'tiny' names no repository; write hf://user/repository"):
        load("hf://tiny")


def test_explicit_runtime(model_dir: Path, predictor: Predictor) -> None:
    answer = load(model_dir, runtime="torch").predict([picture(0)])
    assert answer == predictor.predict([picture(0)])
