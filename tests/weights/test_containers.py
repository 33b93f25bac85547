"""Files of every kind: what they are is read from their bytes, and which weights in them are taken."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from publishers_nets import PUBLISHERS
from safetensors.torch import save_file
from small_nets import TINY, make_net
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, TensorDataset

from phiscale.errors import ModelDirError
from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess
from phiscale.weights.checkpoint import open_checkpoint
from phiscale.weights.containers import Entry, file_kind, read_container
from phiscale.weights.create import create_model
from phiscale.weights.load import load_weights
from phiscale.weights.model_dir import load_network

RAW = {"a.weight": torch.arange(3.0), "a.num_batches_tracked": torch.tensor(7)}
AVERAGED = {name: tensor + 10 for name, tensor in RAW.items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def write(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


# -- kinds ---------------------------------------------------------------------------------------------


def as_safetensors(path: Path) -> None:
    save_file(RAW, path)


def as_zip(path: Path) -> None:
    torch.save(RAW, path)


def as_old_pickle(path: Path) -> None:
    torch.save(RAW, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("make", "kind"),
    [(as_safetensors, "safetensors"), (as_zip, "pickle"), (as_old_pickle, "pickle")],
)
@pytest.mark.parametrize("name", ["x", "x.bin", "x.pth", "x.safetensors", "x.h5"])
def test_the_kind_is_in_the_bytes(make: Callable[[Path], None], kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    make(path)
    assert file_kind(path) == kind
    container = read_container(path)
    assert equal(dict(sorted(container.tensors.items())), dict(sorted(RAW.items())))
    assert (container.kind, container.entry, container.entries) == (kind, None, ())


def test_texts_in_a_safetensors_header(tmp_path: Path) -> None:
    save_file(RAW, tmp_path / "x", metadata={"format": "pt", "a": "b"})
    assert read_container(tmp_path / "x").metadata == {"format": "pt", "a": "b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>404</html> not weights", "is no file of weights"),
        (b"PK\x03\x04junk", "cannot"),
    ],
)
def test_what_is_no_file_of_weights(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "efficientnet_b0.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelDirError, match=message) as error:
        read_container(path)
    assert "\n" not in str(error.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match="does not exist"):
        read_container(tmp_path / "x")
    with pytest.raises(ModelDirError, match="cannot read"):
        read_container(tmp_path)


def test_a_truncated_file(tmp_path: Path) -> None:
    for make in (as_safetensors, as_zip, as_old_pickle):
        path = tmp_path / make.__name__
        make(path)
        path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(ModelDirError, match=r"truncated or damaged|cannot read|is damaged") as error:
            read_container(path)
        assert "\n" not in str(error.value)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_no_code_runs_from_a_pickle(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    first = write({"state_dict": RAW, "extra": Trap(sprung)}, tmp_path / "x")
    second = tmp_path / "y"
    second.write_bytes(pickle.dumps(Trap(sprung)))
    for path in (first, second):
        with pytest.raises(ModelDirError, match="could run code and are not loaded"):
            read_container(path)
    assert not sprung.exists()


def test_a_whole_module_is_refused_with_advice(tmp_path: Path) -> None:
    path = write(torch.nn.Linear(2, 2), tmp_path / "x")
    with pytest.raises(ModelDirError, match="store its state_dict alone"):
        read_container(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor and no state_dict"),
        ([RAW], "holds a list and no state_dict"),
        ({"epoch": 3}, "holds no state_dict"),
        ({"state_dict": {}}, "holds no state_dict"),
    ],
)
def test_a_file_without_a_state_dict(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=message):
        read_container(write(content, tmp_path / "x"))


# -- training checkpoints ------------------------------------------------------------------------------

NOT_WEIGHTS = {"epoch": 3, "args": argparse.Namespace(lr=0.1, model="b0"), "metric": 71.5}
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "timm": {**NOT_WEIGHTS, "state_dict": RAW, "optimizer": OPTIMIZER, "state_dict_ema": AVERAGED},
    "torchvision": {**NOT_WEIGHTS, "model": RAW, "optimizer": OPTIMIZER, "model_ema": AVERAGED},
    "lightning": {**NOT_WEIGHTS, "state_dict": AVERAGED, "current_model_state": OrderedDict(RAW)},
}


@pytest.mark.parametrize("entry", ["ema", "plain", None])
@pytest.mark.parametrize("script", CHECKPOINTS)
def test_entries_of_training_checkpoints(script: str, entry: Entry | None, tmp_path: Path) -> None:
    container = read_container(write(CHECKPOINTS[script], tmp_path / "x"), entry=entry)
    assert container.entries == ("ema", "plain")
    assert container.entry == (entry or "ema")
    assert equal(container.tensors, RAW if entry == "plain" else AVERAGED)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "weights"])
def test_a_checkpoint_without_an_average(key: str, tmp_path: Path) -> None:
    path = write({**NOT_WEIGHTS, key: RAW, "optimizer": OPTIMIZER}, tmp_path / "x")
    container = read_container(path)
    assert (container.entries, container.entry) == (("plain",), "plain")
    assert equal(container.tensors, RAW)
    with pytest.raises(ModelDirError, match=r"has no entry 'ema'; it has 'plain'"):
        read_container(path, entry="ema")


@pytest.mark.parametrize("make", [as_safetensors, as_zip])
def test_plain_weights_have_no_average(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    assert equal(
        dict(sorted(read_container(tmp_path / "x", entry="plain").tensors.items())), dict(sorted(RAW.items()))
    )
    with pytest.raises(ModelDirError, match="has no averaged weights"):
        read_container(tmp_path / "x", entry="ema")


def test_parameters_and_other_values_in_a_state_dict(tmp_path: Path) -> None:
    state = {
        "a": torch.nn.Parameter(torch.ones(2)),
        "step": 5,
        "name": "x",
        "sparse": torch.eye(2).to_sparse(),
    }
    container = read_container(write(state, tmp_path / "x"))
    assert list(container.tensors) == ["a"]
    assert not container.tensors["a"].requires_grad


def test_torchs_averaged_model_as_torchvision_stores_it(tmp_path: Path) -> None:
    """Its state dict has the prefix of a wrapper, and counts its updates in a tensor beside the weights."""
    theirs = PUBLISHERS["torchvision"].build("efficientnet_b0", 224)
    average = AveragedModel(theirs, use_buffers=True)
    average.update_parameters(theirs)
    path = write(
        {"model": theirs.state_dict(), "model_ema": average.state_dict(), "args": NOT_WEIGHTS["args"]},
        tmp_path / "x",
    )
    checkpoint = open_checkpoint(path)
    assert (checkpoint.layout.name, checkpoint.entry) == ("torchvision", "ema")
    assert checkpoint.complete
    create_model("efficientnet_b0", weights=path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "model."])
def test_entries_under_a_wrapper(prefix: str, tmp_path: Path) -> None:
    raw, averaged = make_net(TINY, seed=1), make_net(TINY, seed=2)
    path = write(
        {
            "state_dict": {prefix + name: tensor for name, tensor in raw.state_dict().items()},
            "state_dict_ema": {prefix + name: tensor for name, tensor in averaged.state_dict().items()},
        },
        tmp_path / "x",
    )
    for entry, expected in (("plain", raw), ("ema", averaged)):
        net = Network(TINY)
        report = load_weights(net, path, entry=entry)  # type: ignore[arg-type]
        assert report.complete
        assert equal(net.state_dict(), expected.state_dict())
        assert report.source.endswith(f", {entry} weights")


def test_a_checkpoint_of_this_projects_training(tmp_path: Path) -> None:
    """Lightning writes the average as "state_dict", the last step's weights as "current_model_state"."""
    from phiscale.training.recipe import Recipe
    from phiscale.training.train import train

    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    dataset: Dataset[Any] = TensorDataset(images, torch.arange(16) % TINY.num_classes)
    data = DataLoader(dataset, batch_size=8)
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.05, warmup_epochs=0, ema_decay=0.9)
    train(
        make_net(TINY, seed=1),
        data,
        data,
        recipe=recipe,
        out=tmp_path,
        classes=("red", "green", "blue"),
        preprocess=Preprocess.for_size(32),
        progress=False,
    )
    path = tmp_path / "checkpoints" / "last.ckpt"
    averaged, raw = Network(TINY), Network(TINY)
    assert load_weights(averaged, path).source.endswith("ema weights")
    assert load_weights(raw, path, entry="plain").complete
    # The model directory has the average too.
    assert equal(averaged.state_dict(), load_network(tmp_path).state_dict())
    assert not equal(averaged.state_dict(), raw.state_dict())
