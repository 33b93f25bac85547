"""Files in Keras' layouts, made by hand: names, layers before the stem, and files that are refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from phiscale.errors import MissingDependencyError, ModelDirError
from phiscale.families import get_spec
from phiscale.preprocess import IMAGENET_MEAN, IMAGENET_STD
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec
from phiscale.weights import hdf5_process
from phiscale.weights.formats.keras import KERAS
from phiscale.weights.hdf5 import (
    KerasFile,
    KerasKind,
    input_transform,
    normalization_tensors,
    read_keras,
    write_keras,
)

h5py = pytest.importorskip("h5py")

Arrays = dict[str, NDArray[Any]]

SPEC = NetworkSpec(
    name="small",
    stem=StemSpec(out_channels=8),
    stages=(
        StageSpec(block="mbconv", out_channels=8, se_ratio=0.25),
        StageSpec(block="mbconv", out_channels=16, stride=2, expand_ratio=2, se_ratio=0.25, num_layers=2),
    ),
    head=HeadSpec(out_channels=32),
    image_size=(32, 32),
    num_classes=3,
)
SLOW = [pytest.param(f"efficientnet_b{index}", marks=pytest.mark.slow) for index in (1, 2, 4, 5, 6, 7)]
KINDS: tuple[KerasKind, ...] = ("weights.h5", "legacy h5", "keras")


def tensors_of(spec: NetworkSpec, *, seed: int = 0) -> Arrays:
    """Random tensors with a network's names, its output channels and kernels; other sizes are small."""
    rng = np.random.default_rng(seed)
    channels = {"stem_conv": spec.stem.out_channels, "predictions": spec.num_classes}
    kernels = {"stem_conv": (3, 3)}
    for block, name in zip(spec.blocks(), blocks_of(spec), strict=True):
        channels[f"{name}_project_conv"] = block.out_channels
        kernels[f"{name}_dwconv"] = (block.stage.kernel_size,) * 2
    result = normalization_tensors(IMAGENET_MEAN, IMAGENET_STD)
    for name in KERAS.tensors(spec).values():
        layer, _, leaf = name.partition("/")
        size = (*kernels.get(layer, (1, 1)), 1, channels.get(layer, 4))
        shape = (
            (4, spec.num_classes) if name == "predictions/kernel" else size if leaf == "kernel" else size[-1:]
        )
        result[name] = rng.normal(size=shape).astype(np.float32)
    return result


def blocks_of(spec: NetworkSpec) -> list[str]:
    names = KERAS.tensors(spec).values()
    return [name.removesuffix("_dwconv/kernel") for name in names if name.endswith("_dwconv/kernel")]


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert np.array_equal(found[name], array), name


def layer_of(kind: str, name: str, **values: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, **values}}


def config_of(
    *before: dict[str, Any], spec: NetworkSpec = SPEC, after: tuple[Any, ...] = ()
) -> dict[str, Any]:
    """The parts of a config that are looked at: classes, names and numbers, in the order of the network."""
    kinds = {"dwconv": "DepthwiseConv2D", "bn": "BatchNormalization", "predictions": "Dense"}
    names = dict.fromkeys(name.partition("/")[0] for name in KERAS.tensors(spec).values())
    layers = [*before, layer_of("ZeroPadding2D", "stem_conv_pad")]
    for name in names:
        layers.append(layer_of(kinds.get(name.rpartition("_")[2], "Conv2D"), name))
        if name == "top_bn":
            layers.append(layer_of("Activation", "top_activation"))
    return {"module": "keras", "class_name": "Functional", "config": {"layers": [*layers, *after]}}


USUAL = (
    layer_of("InputLayer", "input"),
    layer_of("Rescaling", "r", scale=1 / 255),
    layer_of("Normalization", "n_2"),
)


@pytest.fixture(scope="module")
def tensors() -> Arrays:
    return tensors_of(SPEC)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_whatever_the_order_and_the_name(kind: KerasKind, tensors: Arrays, tmp_path: Path) -> None:
    config = config_of(*USUAL) if kind == "keras" else None
    names = list(tensors)
    random.Random(1).shuffle(names)
    write_keras(tmp_path / "no_suffix", {name: tensors[name] for name in names}, kind=kind, config=config)
    file = read_keras(tmp_path / "no_suffix")
    assert file.kind == kind
    assert file.config == config
    assert_same(file.tensors, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["no_suffix"]


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b3", *SLOW])
def test_without_names_the_order_tells_the_layers(name: str, tmp_path: Path) -> None:
    spec = get_spec(name)
    expected = tensors_of(spec)
    write_keras(tmp_path / "named.h5", expected)
    with h5py.File(tmp_path / "named.h5") as named, h5py.File(tmp_path / "bare.h5", "w") as bare:
        # Keras 2.12 called the group of the layers otherwise; it gives no names, nor did Keras 3 at first.
        for layer in named["layers"]:
            for number, array in named[f"layers/{layer}/vars"].items():
                bare[f"_layer_checkpoint_dependencies/{layer}/vars/{number}"] = array[()]
        assert not any("name" in item.attrs for item in bare["_layer_checkpoint_dependencies"].values())
    assert_same(read_keras(tmp_path / "bare.h5").tensors, expected)


@pytest.mark.parametrize("whole_model", [False, True])
def test_layout_of_keras_2(whole_model: bool, tensors: Arrays, tmp_path: Path) -> None:
    """``kernel:0`` in a group of its own, counted names, a list of layers in pieces, an optimizer's state."""
    with h5py.File(tmp_path / "old.h5", "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        root.attrs["layer_names0"], root.attrs["layer_names1"] = [b"input_1", b"rescaling_7"], [b"stem_conv"]
        root.create_group("rescaling_7").attrs["weight_names"] = np.zeros(0)
        root.create_group("top_level_model_weights/x")["weights"] = np.zeros(3)
        root["top_dropout/seed_generator/seed_generator_state"] = np.zeros(2, np.uint32)
        for name, array in tensors.items():
            layer, _, leaf = name.partition("/")
            layer = {"normalization": "normalization_3"}.get(layer, layer)
            leaf = "depthwise_kernel" if layer.endswith("dwconv") else leaf
            root[f"{layer}/{layer}/{leaf}:0"] = array
        if whole_model:
            file["optimizer_weights/Adam/stem_conv/kernel/m:0"] = np.zeros(5)
            file.attrs["model_config"] = json.dumps(config_of(*USUAL))
    read = read_keras(tmp_path / "old.h5")
    assert read.kind == "legacy h5"
    assert read.config == (config_of(*USUAL) if whole_model else None)
    assert_same(read.tensors, tensors)


def test_numbers_of_other_kinds(tensors: Arrays, tmp_path: Path) -> None:
    odd = dict(tensors)
    odd["stem_conv/kernel"] = tensors["stem_conv/kernel"].astype(np.float16)
    odd["top_bn/beta"] = tensors["top_bn/beta"].astype(">f8")
    write_keras(tmp_path / "odd.h5", odd)
    # bfloat16 is the upper half of a float32.
    upper = (tensors["top_bn/gamma"].view(np.uint32) >> 16).astype(np.uint16)
    with h5py.File(tmp_path / "odd.h5", "r+") as file:
        group = next(g for g in file["layers"].values() if g["vars"].attrs["name"] == "top_bn")
        del group["vars/0"]
        group["vars"].create_dataset("0", data=upper.view("V2")).attrs["dtype"] = "bfloat16"
        del group["vars/2"]
        group["vars"].create_dataset(
            "2", data=tensors["top_bn/moving_mean"], compression="gzip", shuffle=True
        )
    read = read_keras(tmp_path / "odd.h5").tensors
    odd["top_bn/gamma"] = (upper.astype(np.uint32) << 16).view(np.float32)
    odd["top_bn/beta"] = tensors["top_bn/beta"].astype(np.float64)
    assert_same(read, odd)
    np.testing.assert_allclose(read["top_bn/gamma"], tensors["top_bn/gamma"], rtol=2**-7)


# ---- layers before the stem ----


def simulate(layers: list[dict[str, Any]], image: NDArray[Any], weights: Arrays) -> NDArray[Any]:
    """What Keras' layers compute, one after the other."""
    for layer in layers:
        values, name = layer["config"], layer["config"]["name"]
        if layer["class_name"] == "Rescaling":
            image = image * np.asarray(values["scale"]) + np.asarray(values["offset"])
        elif layer["class_name"] == "Normalization":
            given = values["mean"] is not None
            mean, variance = (values[k] if given else weights[f"{name}/{k}"] for k in ("mean", "variance"))
            std = np.maximum(np.sqrt(variance), 1e-7)
            image = image * std + mean if values["invert"] else (image - mean) / std
    return image


number = st.floats(-4, 4).filter(lambda value: abs(value) > 1e-3)
positive = st.floats(1e-3, 4)


@st.composite
def layers_before(draw: st.DrawFn) -> tuple[list[dict[str, Any]], Arrays]:
    layers, weights = [layer_of("InputLayer", "in")], {}
    for index in range(draw(st.integers(0, 4))):
        match draw(st.sampled_from(("rescaling", "normalization", "identity"))):
            case "rescaling":
                scale = draw(positive | st.lists(positive, min_size=3, max_size=3))
                layers.append(layer_of("Rescaling", f"r{index}", scale=scale, offset=draw(number)))
            case "normalization":
                mean, variance = (draw(st.lists(part, min_size=3, max_size=3)) for part in (number, positive))
                given, invert = draw(st.booleans()), draw(st.booleans())
                weights[f"n{index}/mean"], weights[f"n{index}/variance"] = np.array(mean), np.array(variance)
                constants = {"mean": mean if given else None, "variance": variance if given else None}
                layers.append(layer_of("Normalization", f"n{index}", **constants, invert=invert))
            case "identity":
                kind = draw(st.sampled_from(("RandomFlip", "RandomRotation", "GaussianNoise", "Dropout")))
                layers.append(layer_of(kind, f"i{index}"))
    return layers, weights


@given(layers_before())
def test_a_config_is_carried_out_exactly(case: tuple[list[dict[str, Any]], Arrays]) -> None:
    layers, weights = case
    # A model in a model, as fine-tuning makes them.
    inner = config_of(*layers[1:])
    config = {"class_name": "Functional", "config": {"layers": [layers[0], inner]}}
    file = KerasFile(
        kind="keras", tensors={"stem_conv/kernel": np.zeros((3, 3, 3, 8)), **weights}, config=config
    )
    found = input_transform(file)
    assert found.value is not None, found.source
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.float64)
    expected = simulate(layers, image, weights)
    mean, std = (np.array(part) for part in found.value)
    scale = np.abs(expected).max() + np.abs(mean / std).max()
    np.testing.assert_allclose((image / 255 - mean) / std, expected, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([layer_of("Lambda", "swap", function="code")], "Lambda"),
        ([layer_of("TFOpLambda", "tf.math.truediv")], "TFOpLambda"),
        ([layer_of("ZeroPadding2D", "border")], "ZeroPadding2D"),
        ([layer_of("RandomCrop", "crop")], "RandomCrop"),
        ([layer_of("Rescaling", "r", scale=-1.0)], "lose or turn"),
        ([layer_of("Rescaling", "r", scale=0.0)], "lose or turn"),
        ([layer_of("Rescaling", "r", scale=float("nan"))], "lose or turn"),
        ([layer_of("Rescaling", "r", scale=[1.0, 2.0])], "2 values for 3 channels"),
        ([layer_of("Rescaling", "r", scale="much")], "wrong"),
        ([layer_of("Rescaling", "r", scale=10**400)], "wrong"),
        ([layer_of("Rescaling", "r")], "wrong"),
        ([layer_of("Normalization", "n", mean=None)], "wrong"),
        ([layer_of("Normalization", "n", mean=[0.0], variance=[-1.0])], "lose or turn"),
    ],
)
def test_what_is_not_known_is_not_guessed(layers: list[dict[str, Any]], reason: str) -> None:
    tensors = {"stem_conv/kernel": np.zeros((3, 3, 3, 8))}
    found = input_transform(KerasFile(kind="keras", tensors=tensors, config=config_of(*layers)))
    assert found.value is None
    assert reason in found.source


def test_numbers_may_be_arrays_of_keras() -> None:
    layer = layer_of(
        "Rescaling", "r", scale={"class_name": "__numpy__", "config": {"value": [0.5, 1, 2]}}, offset=0
    )
    tensors = {"stem_conv/kernel": np.zeros((3, 3, 3, 8))}
    found = input_transform(KerasFile(kind="keras", tensors=tensors, config=config_of(layer)))
    expected = np.float32(1 / (255 * np.array([0.5, 1, 2])))
    assert found.value is not None
    assert np.array_equal(np.asarray(found.value[1], np.float32), expected)


def bare(variance: Any, *, rescalings: int | None = None) -> KerasFile:
    tensors: Arrays = {
        "normalization/mean": np.asarray(IMAGENET_MEAN, np.float32),
        "normalization/variance": np.asarray(variance, np.float32),
    }
    return KerasFile(kind="weights.h5", tensors=tensors, rescalings=rescalings)


def test_weights_alone_are_those_of_keras_applications() -> None:
    """ImageNet's std in place of a variance is the mark of the published files (tensorflow#49930)."""
    published = input_transform(bare(IMAGENET_STD))
    assert published.value == (IMAGENET_MEAN, IMAGENET_STD)
    assert 'weights="imagenet"' in published.source

    adapted = input_transform(bare(np.square(IMAGENET_STD)))
    assert adapted.value is not None
    np.testing.assert_allclose(adapted.value[1], IMAGENET_STD, rtol=1e-6)
    assert "weights=" not in adapted.source

    fresh = normalization_tensors((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    never = input_transform(KerasFile(kind="weights.h5", tensors=fresh))
    assert never.value == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_weights_alone_that_list_other_layers_are_not_guessed() -> None:
    assert input_transform(bare(IMAGENET_STD, rescalings=2)).value == (IMAGENET_MEAN, IMAGENET_STD)
    assert input_transform(bare(np.square(IMAGENET_STD), rescalings=1)).value is not None
    for odd in (bare(np.square(IMAGENET_STD), rescalings=2), bare(IMAGENET_STD, rescalings=3)):
        assert input_transform(odd).value is None
    assert input_transform(KerasFile(kind="weights.h5", tensors={})).value is None
    assert input_transform(bare([1.0, 2.0])).value is None


# ---- the classifier of a model around the network ----


POOL, DENSE = layer_of("GlobalAveragePooling2D", "pool"), layer_of("Dense", "mine", activation="softmax")


@pytest.mark.parametrize(
    ("after", "name"),
    [
        ((POOL, layer_of("Dropout", "d"), DENSE), "predictions"),
        ((layer_of("GlobalMaxPooling2D", "pool"), DENSE), "mine"),
        ((POOL, layer_of("BatchNormalization", "b"), DENSE), "mine"),
        ((POOL, DENSE, layer_of("Dense", "last")), "mine"),
        ((POOL, layer_of("Dense", "mine", activation="relu")), "mine"),
    ],
)
def test_only_a_head_like_ours_is_the_classifier(after: tuple[Any, ...], name: str, tmp_path: Path) -> None:
    headless = NetworkSpec.from_dict({**SPEC.to_dict(), "num_classes": 0})
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(config_of(*USUAL, spec=headless, after=after))
        file["model_weights/small/stem_conv/kernel"] = np.zeros((3, 3, 3, 8), np.float32)
        file["model_weights/mine/mine/kernel"] = np.zeros((32, 3), np.float32)
    assert f"{name}/kernel" in read_keras(tmp_path / "model.h5").tensors


# ---- writing what does not fit ----


def without(tensors: Arrays, prefix: str) -> Arrays:
    return {name: array for name, array in tensors.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("change", "kind", "config", "match"),
    [
        (
            lambda t: {**t, "block1a_attention/kernel": t["stem_conv/kernel"]},
            "weights.h5",
            None,
            "no layer block1a_att",
        ),
        (lambda t: {**t, "kernel": t["stem_conv/kernel"]}, "weights.h5", None, "no layer without a name"),
        (lambda t: {**t, "stem_conv/scale": t["stem_bn/beta"]}, "weights.h5", None, "stem_conv has no scale"),
        (
            lambda t: without(t, "top_bn/moving"),
            "legacy h5",
            None,
            "top_bn lacks moving_mean, moving_variance",
        ),
        (lambda t: without(t, "normalization"), "legacy h5", None, "normalization_tensors"),
        (lambda t: t, "keras", None, "write a .weights.h5"),
        (lambda t: t, "keras", {"class_name": "Functional"}, "write a .weights.h5"),
        (lambda t: t, "keras", {"module": "keras", "class_name": "Functional"}, "write a .weights.h5"),
        (lambda t: without(t, "predictions"), "keras", config_of(*USUAL), "write a .weights.h5"),
        (
            lambda t: t,
            "keras",
            {"module": "k", "config": {"layers": [config_of(*USUAL)]}},
            "write a .weights.h5",
        ),
    ],
)
def test_a_refused_write_leaves_the_old_file(
    change: Callable[[Arrays], Arrays],
    kind: KerasKind,
    config: dict[str, Any] | None,
    match: str,
    tensors: Arrays,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(ModelDirError, match=match) as caught:
        write_keras(tmp_path / "file", change(tensors), kind=kind, config=config)
    assert "\n" not in str(caught.value)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_write_that_fails_leaves_the_old_file(tensors: Arrays, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(TypeError):  # h5py has no such type
        write_keras(tmp_path / "file", {**tensors, "top_bn/gamma": np.array([object()])})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


# ---- files that are refused ----

GROUP = "layers/conv2d/vars"


def soft_link(file: Any) -> None:
    file[f"{GROUP}/0"] = h5py.SoftLink("/elsewhere")


def external_link(file: Any) -> None:
    file["layers/conv2d"] = h5py.ExternalLink("/etc/hostname", "/")


def external_data(file: Any) -> None:
    file.create_dataset(f"{GROUP}/0", (8,), "f4", external=[("/etc/hostname", 0, 32)])


def virtual_data(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "data", (4,))
    file.create_virtual_dataset(f"{GROUP}/0", layout)


def compound(file: Any) -> None:
    file[f"{GROUP}/0"] = np.zeros(3, [("a", "f4"), ("b", "f4")])


def strings(file: Any) -> None:
    file[f"{GROUP}/0"] = ["text", "more"]


def complex_numbers(file: Any) -> None:
    file[f"{GROUP}/0"] = np.zeros(3, np.complex64)


def no_numbers(file: Any) -> None:
    file[f"{GROUP}/0"] = h5py.Empty("f4")


def quantised(file: Any) -> None:
    file[f"{GROUP}/0"] = np.zeros((3, 3), np.int8)


def nothing_stored(file: Any) -> None:
    file.create_dataset(f"{GROUP}/0", (10**6, 10**6), "f4", chunks=(1000, 1000))


def packed_zeros(file: Any) -> None:
    file.create_dataset(f"{GROUP}/0", data=np.zeros((4000, 4000), "f4"), compression="gzip")


def huge_chunk(file: Any) -> None:
    data = file.create_dataset(
        f"{GROUP}/0", (4,), "f4", chunks=(10**8,), maxshape=(None,), compression="gzip"
    )
    data.id.write_direct_chunk((0,), b"\0" * 100)


def other_filter(file: Any) -> None:
    file.create_dataset(f"{GROUP}/0", data=np.zeros(100, "f4"), compression="lzf")


def a_ring(file: Any) -> None:
    group = file.create_group(GROUP)
    group["again"] = file["layers"]


def deep(file: Any) -> None:
    file["/".join("a" * 40)] = np.zeros(3, "f4")


def number_as_name(file: Any) -> None:
    file[f"{GROUP}/0"] = np.zeros(3, "f4")
    file[GROUP].attrs["name"] = 5


def line_break_in_name(file: Any) -> None:
    file["layers/conv\n2d/vars/0"] = np.zeros(3, "f4")


def twice(file: Any) -> None:
    for layer in ("conv2d", "conv2d_1"):
        file[f"layers/{layer}/vars/0"] = np.zeros(3, "f4")
        file[f"layers/{layer}/vars"].attrs["name"] = "stem_conv"


def not_of_keras(file: Any) -> None:
    file["images"] = np.zeros((4, 4), "f4")


def config_no_json(file: Any) -> None:
    file["model_weights/a/a/kernel"] = np.zeros(3, "f4")
    file.attrs["model_config"] = "{"


def config_no_object(file: Any) -> None:
    file["model_weights/a/a/kernel"] = np.zeros(3, "f4")
    file.attrs["model_config"] = "[1]"


def config_too_deep(file: Any) -> None:
    file["model_weights/a/a/kernel"] = np.zeros(3, "f4")
    file.attrs["model_config"] = "[" * 200_000


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (soft_link, "link in place of data"),
        (external_link, "link in place of data"),
        (external_data, "another file"),
        (virtual_data, "another file"),
        (compound, "where numbers are expected"),
        (strings, "where numbers are expected"),
        (complex_numbers, "where numbers are expected"),
        (no_numbers, "where numbers are expected"),
        (quantised, "is quantised"),
        (nothing_stored, "claims more data than it holds"),
        (packed_zeros, "claims more data than it holds"),
        (huge_chunk, "claims more data than it holds"),
        (other_filter, "packed in a way"),
        (a_ring, "without end"),
        (deep, "without end"),
        (number_as_name, "attribute name"),
        (line_break_in_name, "odd names"),
        (twice, "stem_conv/kernel more than once"),
        (not_of_keras, "no weights of a Keras model"),
        (config_no_json, "no JSON"),
        (config_no_object, "no JSON object"),
        (config_too_deep, "no JSON"),
    ],
)
def test_hdf5_that_is_not_taken(make: Callable[[Any], None], match: str, tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(ModelDirError, match=match) as caught:
        read_keras(path)
    assert str(caught.value).isprintable()


def archive(path: Path, members: dict[str, bytes], *, packed: bool = False) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(name, content)


@pytest.mark.parametrize(
    ("members", "packed", "match"),
    [
        ({"archive/data.pkl": b"x"}, False, "not of Keras"),
        ({"model.weights.h5": b"x"}, False, "not of Keras"),
        ({"config.json": b"{}", "model.weights.h5": b"no HDF5"}, False, "truncated or damaged"),
        ({"config.json": b"{}", "model.weights.h5": bytes(40 << 20)}, True, "claims more data"),
        ({"config.json": b" " * (40 << 20), "model.weights.h5": b""}, True, "claims more data"),
        ({"config.json": b" " * (65 << 20), "model.weights.h5": b""}, False, "of more than 64 MiB"),
        ({"config.json": b"\xff", "model.weights.h5": b""}, False, "truncated or damaged"),
    ],
)
def test_archives_that_are_not_taken(
    members: dict[str, bytes], packed: bool, match: str, tmp_path: Path
) -> None:
    archive(tmp_path / "a.keras", members, packed=packed)
    with pytest.raises(ModelDirError, match=match):
        read_keras(tmp_path / "a.keras")


@pytest.mark.parametrize("content", [b"", b"\x89HDF", b"this is no file of Keras", b"PK\x05\x06" + bytes(18)])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.h5").write_bytes(content)
    with pytest.raises(ModelDirError, match="no file of Keras"):
        read_keras(tmp_path / "file.h5")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match="does not exist"):
        read_keras(tmp_path / "missing.h5")
    with pytest.raises(ModelDirError, match="cannot read"):
        read_keras(tmp_path)


@pytest.mark.parametrize("code", ["import os; os.abort()", "import time; time.sleep(100)"])
def test_a_reader_that_dies_or_never_ends(
    code: str, tensors: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_keras(tmp_path / "good.h5", tensors)
    monkeypatch.setattr(hdf5_process, "_CODE", code)
    monkeypatch.setattr(hdf5_process, "_SECONDS", 1.0)
    with pytest.raises(ModelDirError, match="damaged"):
        read_keras(tmp_path / "good.h5")


def test_h5py_is_asked_for(tmp_path: Path, tensors: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    for call in (lambda: read_keras(tmp_path / "a.h5"), lambda: write_keras(tmp_path / "a.h5", tensors)):
        with pytest.raises(MissingDependencyError, match=r"pip install 'phiscale\[keras\]'"):
            call()


def test_neither_torch_nor_keras_is_loaded() -> None:
    code = "import sys, phiscale.weights.hdf5; sys.exit(str({'torch', 'keras'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


def test_mutated_files(tensors: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong bytes and missing ends give one line or the tensors, also where HDF5 itself crashes."""
    monkeypatch.setattr(hdf5_process, "_SECONDS", 10.0)
    wholes = []
    for kind in KINDS:
        write_keras(
            tmp_path / "whole", tensors, kind=kind, config=config_of(*USUAL) if kind == "keras" else None
        )
        wholes.append((tmp_path / "whole").read_bytes())

    def outcome(seed: int) -> str:
        """The error's message, or nothing."""
        rng = random.Random(seed)
        content = bytearray(rng.choice(wholes))
        if seed % 5 == 0:
            content = content[: rng.randrange(len(content))]
        for _ in range(rng.choice((1, 4, 16))):
            # Most bytes are weights or unused; those that are not zero and come early are structure.
            places = [index for index in rng.choices(range(len(content)), k=20) if content[index]] or [0]
            content[min(places)] = rng.randrange(256)
        path = tmp_path / f"{seed}.h5"
        path.write_bytes(content)
        try:
            input_transform(read_keras(path))
        except ModelDirError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, range(100)))
    assert all(message.isprintable() for message in outcomes)
    assert 50 < sum(map(bool, outcomes)) < 100
