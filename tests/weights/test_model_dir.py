from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import OTHER, TINY, make_net

from phiscale.errors import ModelDirError, SpecError
from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess
from phiscale.weights.config import HEADER_KEY
from phiscale.weights.model_dir import (
    load_network,
    load_state,
    read_config,
    read_metrics,
    save,
    write_metrics,
)


@pytest.fixture
def net() -> Network:
    return make_net(TINY, seed=1)


@pytest.fixture
def other_net() -> Network:
    return make_net(OTHER, seed=2)


CLASSES = ("cat", "dog", "été `x` | <b>")


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_round_trip(net: Network, tmp_path: Path) -> None:
    preprocess = Preprocess(size=(32, 32), resize="pad", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    facts = {"data": {"location": "images", "val_fraction": 0.2, "seed": 7}, "loss": float("nan")}
    path = save(net, tmp_path / "a" / "b", classes=CLASSES, preprocess=preprocess, provenance=facts)

    model = read_config(path)
    assert model.spec == net.spec
    assert model.classes == CLASSES
    assert model.preprocess == preprocess
    assert model.provenance["data"] == facts["data"]
    assert model.provenance["loss"] is None  # JSON has no NaN
    assert {"created", "phiscale", "torch", "python"} <= set(model.provenance)

    loaded = load_network(path)
    assert not loaded.training
    assert same_weights(loaded, net)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), net.eval()(x))


def test_default_names_and_preprocess(net: Network, tmp_path: Path) -> None:
    model = read_config(save(net, tmp_path))
    assert model.classes == ("class_0", "class_1", "class_2")
    assert model.preprocess == Preprocess.for_size(32)


def test_save_leaves_the_network_as_it_is(net: Network, tmp_path: Path) -> None:
    net.train().to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    save(net, tmp_path)
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert same_weights(load_network(tmp_path), net)


def test_wrapped_network_is_unwrapped(net: Network, tmp_path: Path) -> None:
    save(torch.nn.DataParallel(net), tmp_path)  # type: ignore[arg-type]
    assert same_weights(load_network(tmp_path), net)


def test_foreign_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"create_model.*got Linear"):
        save(torch.nn.Linear(2, 2), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "b"], "2 class names for a network of 3"),
        (["a", "b", "a"], "'a' appears twice"),
        (["a", "", "b"], "at least one character"),
    ],
)
def test_wrong_class_names(net: Network, tmp_path: Path, classes: list[str], message: str) -> None:
    with pytest.raises(ModelDirError, match=message):
        save(net, tmp_path / "m", classes=classes)
    assert not (tmp_path / "m").exists()


def test_preprocess_must_fit_channels(net: Network, tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match="1 channels and the network takes 3"):
        save(net, tmp_path, preprocess=Preprocess.for_size(32, channels=1))
    with pytest.raises(SpecError, match="1 or 3 channels"):
        save(Network(replace(TINY, in_channels=5)), tmp_path)


def test_provenance_must_be_plain(net: Network, tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match="got Tensor"):
        save(net, tmp_path, provenance={"loss": torch.zeros(1)})


def test_reading_config_loads_no_torch(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    code = (
        "import sys; from phiscale.weights.model_dir import read_config; "
        "assert len(read_config(sys.argv[1]).classes) == 3; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_loading_keeps_the_random_state(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_network(tmp_path)
    assert torch.equal(torch.rand(4), expected)


# -- what is no model directory ----------------------------------------------------------------


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"does not exist; a model directory holds config\.json"):
        read_config(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelDirError, match="is a file"):
        read_config(tmp_path / "file")


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"it has no config\.json; a model directory holds"):
        read_config(tmp_path)


def test_no_weights(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelDirError, match=r"incomplete: model\.safetensors is missing"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [b'{"format": ', b"", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_config(net: Network, tmp_path: Path, content: bytes) -> None:
    save(net, tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelDirError, match="is damaged"):
        read_config(tmp_path)


def test_config_of_another_program(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "efficientnet"}')
    with pytest.raises(ModelDirError, match="does not describe a phiscale model"):
        read_config(tmp_path)


def test_newer_format(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    edit(tmp_path / "config.json", lambda content: content.update(format_version=2))
    with pytest.raises(ModelDirError, match=r"format version 2 .* pip install --upgrade phiscale"):
        read_config(tmp_path)


@pytest.mark.parametrize("key", ["spec", "classes", "preprocess"])
def test_missing_key(net: Network, tmp_path: Path, key: str) -> None:
    save(net, tmp_path)
    edit(tmp_path / "config.json", lambda content: content.update({key: 5}))
    with pytest.raises(ModelDirError, match=f"{key} is missing or of the wrong type"):
        read_config(tmp_path)


def test_class_count_in_config(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    edit(tmp_path / "config.json", lambda content: content["classes"].pop())
    with pytest.raises(ModelDirError, match=r"config\.json: 2 class names for a network of 3 classes"):
        read_config(tmp_path)


def test_wrong_field_is_named(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    edit(tmp_path / "config.json", lambda content: content["spec"]["stages"][1].update(kernel_size=4))
    with pytest.raises(ModelDirError, match=r"config\.json: stages\[1\]\.kernel_size must be an odd"):
        read_config(tmp_path)


def test_class_names_can_be_edited(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    edit(tmp_path / "config.json", lambda content: content.update(classes=["x", "y", "z"]))
    assert read_config(tmp_path).classes == ("x", "y", "z")
    assert same_weights(load_network(tmp_path), net)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_weights(net: Network, tmp_path: Path, keep: float) -> None:
    weights = save(net, tmp_path) / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ModelDirError, match=r"model\.safetensors is truncated or damaged"):
        load_network(tmp_path)


def test_header_length_beyond_reason(net: Network, tmp_path: Path) -> None:
    weights = save(net, tmp_path) / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ModelDirError, match="truncated or damaged"):
        load_network(tmp_path)


def test_one_flipped_bit_in_the_weights(net: Network, tmp_path: Path) -> None:
    weights = save(net, tmp_path) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-10] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelDirError, match="checksum"):
        load_network(tmp_path)


def test_weights_of_another_network_are_named(net: Network, other_net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    # A configuration that agrees in the checksum and describes another network.
    edit(
        tmp_path / "config.json",
        lambda content: content.update(spec=other_net.spec.to_dict(), classes=["a", "b"]),
    )
    with pytest.raises(ModelDirError, match=r"other shape: head\.conv\.weight \(needs \[24, 16, 1, 1\], "):
        load_network(tmp_path)


# -- kill at any moment ------------------------------------------------------------------------


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Make the step-th change of the folder raise; nothing is cleaned up, as after kill -9."""
    done: list[str] = []

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Path, *args: Any, **kwargs: Any) -> Any:
            if len(done) >= step:
                raise Killed
            done.append(f"{method.__name__} {self.name}")
            return method(self, *args, **kwargs)

        return call

    for name in ("replace", "unlink", "write_text", "mkdir"):
        monkeypatch.setattr(Path, name, guarded(getattr(Path, name)))
    return done


def test_kill_while_replacing(
    net: Network, other_net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for step in range(20):
        folder = tmp_path / str(step)
        save(net, folder, classes=["a", "b", "c"])
        write_metrics(folder, {"top1": 0.5})
        with monkeypatch.context() as patch:
            done = kill_at(patch, step)
            try:
                save(other_net, folder, classes=["x", "y"])
                finished = True
            except Killed:
                finished = False
            assert finished or len(done) == step
        model, loaded = read_config(folder), load_network(folder)
        if same_weights(loaded, net):
            assert model.classes == ("a", "b", "c")
            assert read_metrics(folder) is not None
            outcomes.append("old")
        else:
            assert same_weights(loaded, other_net)
            assert model.classes == ("x", "y")
            assert model.spec == other_net.spec
            assert read_metrics(folder) is None
            outcomes.append("new")
        if finished:
            break
    assert finished
    assert outcomes == sorted(outcomes, reverse=True)
    assert {"old", "new"} == set(outcomes)
    assert len(outcomes) >= 6


def test_kill_at_the_first_save(net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = []
    for step in range(20):
        folder = tmp_path / str(step)
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                save(net, folder)
                break
            except Killed:
                pass
        with pytest.raises(ModelDirError) as caught:
            read_config(folder)
        messages.append(str(caught.value))
        # The next save takes the remains for its own.
        assert same_weights(load_network(save(net, folder)), net)
    assert len(messages) >= 4
    assert "does not exist" in messages[0]
    assert "incomplete: config.json is missing" in messages[-1]


def test_failure_leaves_no_temporary_files(
    net: Network, other_net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(net, tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phiscale.weights.tensors.save_file", full)
    with pytest.raises(ModelDirError, match=r"cannot save the model in .*No space left"):
        save(other_net, tmp_path)
    assert (
        sorted(path.name for path in tmp_path.iterdir())
        == before
        == ["README.md", "config.json", "model.safetensors"]
    )
    assert same_weights(load_network(tmp_path), net)


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_somebody_elses_files_are_not_overwritten(net: Network, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(ModelDirError, match="choose another directory"):
        save(net, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_directory_is_a_file(net: Network, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelDirError, match="cannot save the model"):
        save(net, tmp_path / "file")


def test_header_carries_the_configuration(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    assert json.loads(metadata[HEADER_KEY]) == json.loads((tmp_path / "config.json").read_text())


# -- metrics, card, state ----------------------------------------------------------------------


def test_metrics_belong_to_their_weights(net: Network, other_net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    assert read_metrics(tmp_path) is None
    first = read_config(tmp_path).weights_sha256
    write_metrics(tmp_path, {"top1": 0.75, "num_images": 8, "data": {"split": "val"}})
    metrics = read_metrics(tmp_path)
    assert metrics is not None
    assert metrics["top1"] == 0.75
    card = (tmp_path / "README.md").read_text()
    assert "| Top-1 accuracy | 75.00% |" in card
    assert "8 images, split `val`" in card

    save(other_net, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    assert "Top-1" not in (tmp_path / "README.md").read_text()
    # Measured before the weights were exchanged: kept in the file, shown nowhere.
    write_metrics(tmp_path, {"top1": 0.75, "weights_sha256": first})
    assert read_metrics(tmp_path) is None
    assert "Top-1" not in (tmp_path / "README.md").read_text()


def test_card(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path, classes=CLASSES)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: phiscale\n")
    assert "license" not in card
    params = sum(parameter.numel() for parameter in net.parameters())
    assert f"| Parameters | {params:,} |" in card
    assert "`cat`, `dog`, `été 'x' | <b>`" in card


def test_card_keeps_what_a_person_wrote(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("---\n\n", "license: mit\n---\n\nBefore.\n", 1) + "After.\n")
    write_metrics(tmp_path, {"top1": 1.0})
    write_metrics(tmp_path, {"top1": 0.25})
    card = path.read_text()
    assert "license: mit" in card
    assert "Before." in card
    assert card.endswith("After.\n")
    assert card.count("Top-1") == 1
    assert "25.00%" in card


def test_card_without_markers_is_left_alone(net: Network, tmp_path: Path) -> None:
    save(net, tmp_path)
    (tmp_path / "README.md").write_text("mine")
    write_metrics(tmp_path, {"top1": 1.0})
    assert (tmp_path / "README.md").read_text() == "mine"


def test_load_state(net: Network, tmp_path: Path) -> None:
    expected = net.state_dict()
    sources = [save(net, tmp_path / "model"), tmp_path / "model" / "model.safetensors"]
    torch.save(expected, tmp_path / "plain.pt")
    torch.save({"state_dict": expected, "epoch": 3}, tmp_path / "nested.pth")
    for source in [*sources, tmp_path / "plain.pt", tmp_path / "nested.pth"]:
        state = load_state(source)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code ran')",))


def test_load_state_refuses_code_and_damage(tmp_path: Path) -> None:
    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelDirError, match="Python objects"):
        load_state(tmp_path / "evil.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ModelDirError, match="no state_dict"):
        load_state(tmp_path / "empty.pt")
    whole = (tmp_path / "empty.pt").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "damaged.pt").write_bytes(content)
        with pytest.raises(ModelDirError, match=r"damaged\.pt"):
            load_state(tmp_path / "damaged.pt")
    for name in ("none.pt", "none.safetensors", "none"):
        with pytest.raises(ModelDirError, match="does not exist; give a model directory"):
            load_state(tmp_path / name)
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(ModelDirError, match="unknown kind"):
        load_state(tmp_path / "weights.h5")
