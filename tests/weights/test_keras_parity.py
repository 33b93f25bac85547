"""Files between this project and Keras itself, on its torch backend, and the logits of both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from phiscale.families import get_spec
from phiscale.nn.network import Network, build_network
from phiscale.preprocess import IMAGENET_MEAN, IMAGENET_STD
from phiscale.weights.formats.keras import KERAS
from phiscale.weights.formats.keymap import kind_of
from phiscale.weights.hdf5 import KerasFile, KerasKind, input_transform, read_keras, write_keras

pytest.importorskip("h5py")
# Keras turns its torch variables into arrays in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

Arrays = dict[str, NDArray[Any]]

KINDS: tuple[KerasKind, ...] = ("weights.h5", "legacy h5", "keras")
SUFFIXES = {"weights.h5": ".weights.h5", "legacy h5": ".h5", "keras": ".keras"}
TOLERANCE = 1e-5
"""Of the output's scale."""


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Keras on its torch backend, its settings in a folder of ours. It leaves those of torch alone."""
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        module = pytest.importorskip("keras")
        if module.backend.backend() != "torch":
            pytest.skip("Keras is loaded with another backend")
        with module.device("cpu"):
            yield module
        module.utils.clear_session()
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == before


def make_model(keras: Any, number: int, size: int, *, seed: int, **options: Any) -> Any:
    """A network of keras.applications that gives logits, with values that are none of its defaults.

    The statistics of batch norm come from images, and are then moved a little: with arbitrary ones the
    signal of a random network fades, its logits are much the same for every image and compare nothing.
    """
    options = {"weights": None, "classifier_activation": None, "input_shape": (size, size, 3), **options}
    model = getattr(keras.applications, f"EfficientNetB{number}")(**options)
    rng = np.random.default_rng(seed)
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    for layer in model.layers:
        values = layer.get_weights()
        if layer in norms:
            layer.set_weights(
                [rng.uniform(0.7, 1.3, values[0].shape), rng.normal(0, 0.2, values[1].shape), *values[2:]]
            )
            layer.momentum = 0.0
        elif type(layer).__name__ == "Normalization":
            layer.set_weights([np.array([0.5, 0.45, 0.4]), np.array([0.05, 0.06, 0.07]), values[2]])
            layer.finalize_state()
        elif len(values) == 2:
            layer.set_weights([values[0], rng.normal(0, 0.1, values[1].shape)])
    with torch.no_grad():
        model(images(size, number=4), training=True)
    for layer in norms:
        layer.momentum = 0.99
        *rest, mean, variance = layer.get_weights()
        mean += 0.05 * np.sqrt(variance) * rng.normal(size=mean.shape)
        layer.set_weights([*rest, mean, variance * rng.uniform(0.9, 1.2, variance.shape)])
    return model


def images(size: int, *, number: int = 2) -> NDArray[np.float32]:
    """Images of values 0 to 255 with coarse shapes, as noise alone is the same image to a network."""
    rng = np.random.default_rng(7)
    shapes = rng.integers(0, 256, (number, 5, 5, 3))
    place = np.arange(size) * 5 // size
    noise = rng.integers(-40, 41, (number, size, size, 3))
    result: NDArray[np.float32] = np.clip(shapes[:, place][:, :, place] + noise, 0, 255).astype(np.float32)
    return result


def variables_of(model: Any) -> Arrays:
    """What a file should hold, from the model itself."""
    names = {layer: layer.name for layer in model.layers if layer.weights}
    names.update({layer: "normalization" for layer in names if type(layer).__name__ == "Normalization"})
    return {
        f"{name}/{variable.name}": np.asarray(variable.value.detach().numpy())
        for layer, name in names.items()
        for variable in layer.weights
    }


def save(model: Any, path: Path, kind: KerasKind) -> Path:
    path = path.with_name(path.name + SUFFIXES[kind])
    if kind == "weights.h5":
        model.save_weights(path)
    else:
        model.save(path)
    return path


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert np.array_equal(found[name], array), name


def network_of(file: KerasFile, name: str) -> Network:
    """Our network with the tensors of a file."""
    classes = file.tensors["predictions/bias"].size if "predictions/bias" in file.tensors else 0
    spec = get_spec(name)
    net = build_network(spec, num_classes=classes)
    state = net.state_dict()
    for ours, theirs in KERAS.tensors(net.spec).items():
        tensor = torch.from_numpy(file.tensors[theirs])
        axes = KERAS.axes.get(kind_of(ours.rpartition(".")[0])) if ours.endswith(".weight") else None
        state[ours] = tensor.permute(axes) if axes else tensor
    net.load_state_dict(state)
    return net.eval()


def error_of(model: Any, file: KerasFile, name: str, batch: NDArray[np.float32]) -> float:
    """Largest difference of the logits, in units of the largest logit."""
    transform = input_transform(file)
    assert transform.value is not None, transform.source
    mean, std = (torch.tensor(part) for part in transform.value)
    with torch.no_grad():
        theirs = model(batch, training=False).numpy()
        ours = network_of(file, name)(
            ((torch.from_numpy(batch) / 255 - mean) / std).permute(0, 3, 1, 2)
        ).numpy()
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max()
    # Where all images give much the same logits, these compare nothing. B0's differ by 15 %, B7's by 1 %.
    assert np.abs(theirs[0] - theirs[-1]).max() > 100 * TOLERANCE * scale
    return float(np.abs(ours - theirs).max() / scale)


@pytest.fixture(scope="module")
def b0(keras: Any) -> Any:
    return make_model(keras, 0, 224, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_keras_writes_is_read(b0: Any, kind: KerasKind, tmp_path: Path) -> None:
    file = read_keras(save(b0, tmp_path / "b0", kind))
    assert file.kind == kind
    assert (file.config is None) == (kind == "weights.h5")
    assert_same(file.tensors, variables_of(b0))


def check_writing(keras: Any, model: Any, number: int, kind: KerasKind, folder: Path) -> None:
    source = read_keras(save(model, folder / "from", "keras"))
    path = folder / f"to{SUFFIXES[kind]}"
    write_keras(path, source.tensors, kind=kind, config=source.config if kind == "keras" else None)
    fresh = getattr(keras.applications, f"EfficientNetB{number}")(
        weights=None, input_shape=model.input_shape[1:]
    )
    fresh.load_weights(path)
    assert_same(variables_of(fresh), variables_of(model))
    if kind == "keras":
        assert_same(variables_of(keras.saving.load_model(path)), variables_of(model))


@pytest.mark.parametrize("kind", KINDS)
def test_keras_takes_what_is_written(keras: Any, b0: Any, kind: KerasKind, tmp_path: Path) -> None:
    check_writing(keras, b0, 0, kind, tmp_path)


def test_logits(b0: Any, tmp_path: Path) -> None:
    file = read_keras(save(b0, tmp_path / "b0", "weights.h5"))
    assert error_of(b0, file, "efficientnet_b0", images(224)) < TOLERANCE


def test_logits_at_237_px(keras: Any, tmp_path: Path) -> None:
    model = make_model(keras, 0, 237, seed=1)
    file = read_keras(save(model, tmp_path / "b0", "weights.h5"))
    assert error_of(model, file, "efficientnet_b0", images(237)) < TOLERANCE


def test_no_classifier_and_statistics_that_were_never_adapted(keras: Any, tmp_path: Path) -> None:
    model = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(64, 64, 3))
    for kind in KINDS:
        file = read_keras(save(model, tmp_path / "b0", kind))
        assert_same(file.tensors, variables_of(model))
        assert input_transform(file).value == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_the_published_networks_third_layer(
    keras: Any, b0: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """weights="imagenet" with a file like the published one in place of the download."""
    tensors = variables_of(b0)
    tensors["normalization/mean"] = np.asarray(IMAGENET_MEAN, np.float32)
    tensors["normalization/variance"] = np.asarray(IMAGENET_STD, np.float32)
    path = tmp_path / "efficientnetb0.h5"
    write_keras(path, tensors, kind="legacy h5")
    monkeypatch.setattr("keras.src.applications.efficientnet.file_utils.get_file", lambda *_, **__: str(path))
    model = keras.applications.EfficientNetB0(weights="imagenet", classifier_activation=None)
    assert [type(layer).__name__ for layer in model.layers].count("Rescaling") == 2

    for source in (path, *(save(model, tmp_path / "saved", kind) for kind in KINDS)):
        file = read_keras(source)
        assert_same(file.tensors, tensors)
        assert input_transform(file).value == (IMAGENET_MEAN, IMAGENET_STD)
    assert error_of(model, file, "efficientnet_b0", images(224)) < TOLERANCE


@pytest.fixture(scope="module")
def base(keras: Any) -> Any:
    return make_model(keras, 0, 96, seed=3, include_top=False)


@pytest.mark.parametrize("style", ["functional", "flat", pytest.param("sequential", marks=pytest.mark.slow)])
def test_fine_tuned_models(keras: Any, base: Any, style: str, tmp_path: Path) -> None:
    """A network inside a model with augmentation, a rescaling too many and a classifier of its own."""
    layers = keras.layers
    before = [layers.RandomFlip(), layers.Rescaling(0.5, offset=10.0)]
    after = [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(7)]
    inputs = keras.Input((96, 96, 3))
    if style == "flat":
        outputs = before[1](before[0](inputs))
        flat = keras.applications.EfficientNetB0(weights=None, include_top=False, input_tensor=outputs)
        flat.set_weights(base.get_weights())
        next(layer for layer in flat.layers if type(layer).__name__ == "Normalization").finalize_state()
        model = keras.Model(inputs, after[2](after[1](after[0](flat.output))))
    elif style == "functional":
        outputs = inputs
        for layer in (*before, base, *after):
            outputs = layer(outputs)
        model = keras.Model(inputs, outputs)
    else:
        model = keras.Sequential([inputs, keras.Sequential(before), base, *after])
    model.compile(optimizer="adam")
    model.optimizer.build(model.trainable_variables)

    kernel, bias = after[-1].get_weights()
    expected = {**variables_of(base), "predictions/kernel": kernel, "predictions/bias": bias}
    archive = read_keras(save(model, tmp_path / "model", "keras"))
    legacy = read_keras(save(model, tmp_path / "model", "legacy h5"))
    for file in (archive, legacy):
        assert_same(file.tensors, expected)
    assert input_transform(archive) == input_transform(legacy)
    assert error_of(model, archive, "efficientnet_b0", images(96)) < TOLERANCE
    # Weights alone do not say what the first rescaling does.
    assert input_transform(read_keras(save(model, tmp_path / "model", "weights.h5"))).value is None


def test_bfloat16(keras: Any, tmp_path: Path) -> None:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = keras.applications.EfficientNetB0(weights=None, include_top=False)
    finally:
        keras.config.set_dtype_policy(policy)
    file = read_keras(save(model, tmp_path / "b0", "weights.h5"))
    for layer in ("stem_conv", "block3a_dwconv"):
        expected = model.get_layer(layer).kernel.value.detach()
        assert expected.dtype == torch.bfloat16
        assert np.array_equal(file.tensors[f"{layer}/kernel"], expected.float().numpy())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "size"), [(3, 300), (3, 237), (7, 600)])
def test_larger_networks(keras: Any, number: int, size: int, tmp_path: Path) -> None:
    model = make_model(keras, number, size, seed=number)
    name, native = f"efficientnet_b{number}", get_spec(f"efficientnet_b{number}").image_size
    for kind in KINDS:
        file = read_keras(save(model, tmp_path / "model", kind))
        assert_same(file.tensors, variables_of(model))
        if math.prod(native) == size**2:
            check_writing(keras, model, number, kind, tmp_path)
    assert error_of(model, file, name, images(size)) < TOLERANCE
