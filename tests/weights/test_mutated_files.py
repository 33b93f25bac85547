"""200 files of weights that somebody or something has damaged: each is read, or refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from small_nets import TINY, make_net
from torch import Tensor

from phiscale.errors import PhiscaleError
from phiscale.nn.network import Network
from phiscale.weights.convert import convert_weights
from phiscale.weights.doctor import inspect_weights
from phiscale.weights.formats import FORMATS
from phiscale.weights.load import load_weights
from phiscale.weights.recognise import to_layout

State = dict[str, Tensor]
MARK = "code-of-a-file-ran"
# HDF5 is read in a process of its own, which takes its time.
COUNTS = {"safetensors": 60, "zip": 60, "legacy": 60, "h5": 20}
CASES = [(kind, seed) for kind, count in COUNTS.items() for seed in range(count)]


def good_state(layout: str = "timm") -> State:
    state = to_layout(FORMATS[layout], TINY, make_net(TINY, seed=0).state_dict())
    return {name: tensor.contiguous() for name, tensor in state.items()}


def write(state: Any, path: Path, kind: str) -> None:
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a sound file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    files: dict[str, bytes] = {}
    for kind in ("safetensors", "zip", "legacy"):
        path = folder / f"{kind}.bin"
        write(good_state(), path, kind)
        files[kind] = path.read_bytes()
    convert_weights(folder / "zip.bin", "keras", folder / "net.weights.h5", spec=TINY)
    files["h5"] = (folder / "net.weights.h5").read_bytes()
    return files


def inspected(path: Path) -> str:
    report = inspect_weights(path, model=TINY, parity=False)
    json.dumps(report.to_dict(), allow_nan=False)
    return str(report)


def loaded(path: Path) -> str:
    return str(load_weights(Network(TINY), path))


def read(path: Path) -> PhiscaleError | None:
    """Inspect and load a file. Any error but our own, or one of many lines, fails the test."""
    found = None
    for use in (inspected, loaded):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert use(path)
        except PhiscaleError as error:
            found = error
        # Of any length, but for a terminal.
        assert found is None or str(found).isprintable()
    assert not path.with_name(MARK).exists()
    return found


# ---- what is done to the bytes of a file ----


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    """Most of what matters stands at the beginning and at the end."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 64))):
        span = rng.choice((16, 256, 4096, len(data)))
        place = rng.randrange(min(span, len(data)))
        changed[rng.choice((place, len(data) - 1 - place))] = rng.randrange(256)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 4096) :]


def lie_about_the_header(data: bytes, rng: random.Random) -> bytes:
    """Safetensors begin with the length of their header; other files lose eight bytes."""
    length = rng.choice((0, 1, len(data), 2**31, 2**63, 2**64 - 1, rng.randrange(len(data))))
    return struct.pack("<Q", length) + data[8:]


def append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 4096))


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bytes,
    flip_bytes,
    flip_bytes,
    truncate,
    cut_out,
    lie_about_the_header,
    append,
)


# ---- what is done to the tensors, which are then written as they should be ----


def swap_names(state: State, rng: random.Random) -> State:
    one, other = rng.sample(sorted(state), 2)
    return {**state, one: state[other], other: state[one]}


def rename(state: State, rng: random.Random) -> State:
    prefix = rng.choice(("module.", "x.", "", "\x00", "é" * 99, "../"))
    return {f"{prefix}{name}" if rng.random() < 0.9 else f"{name}\n": t for name, t in state.items()}


def other_shapes(state: State, rng: random.Random) -> State:
    for name in rng.sample(sorted(state), rng.choice((1, 5, len(state)))):
        shape = rng.choice(((), (0,), (3,), (1, 1), (0, 3, 3, 3), (2, 2, 2, 2, 2)))
        state[name] = torch.zeros(shape)
    return state


def odd_values(state: State, rng: random.Random) -> State:
    for name in rng.sample(sorted(state), rng.choice((1, 5, len(state)))):
        if state[name].is_floating_point():
            state[name] = torch.full_like(
                state[name], rng.choice((float("nan"), float("inf"), -1.0, 0.0, 3e38))
            )
    return state


def other_types(state: State, rng: random.Random) -> State:
    types = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.uint8)
    for name in rng.sample(sorted(state), rng.choice((1, 5, len(state)))):
        state[name] = state[name].to(rng.choice(types))
    return state


def drop(state: State, rng: random.Random) -> State:
    for name in rng.sample(sorted(state), rng.randrange(1, len(state))):
        del state[name]
    return state


TENSORS: tuple[Callable[[State, random.Random], State], ...] = (
    swap_names,
    rename,
    other_shapes,
    odd_values,
    other_types,
    drop,
)


@pytest.mark.parametrize(("kind", "seed"), CASES, ids=[f"{kind}-{seed}" for kind, seed in CASES])
def test_a_mutated_file_is_read_or_refused(
    kind: str, seed: int, good: dict[str, bytes], tmp_path: Path
) -> None:
    rng = random.Random(f"{kind} {seed}")
    path = tmp_path / f"net.{rng.choice(('pth', 'safetensors', 'h5', 'bin'))}"
    if kind == "h5" or rng.random() < 0.5:
        path.write_bytes(rng.choice(BYTES)(good[kind], rng))
    else:
        write(rng.choice(TENSORS)(good_state(), rng), path, kind)
    read(path)


def test_the_sound_files_are_read(good: dict[str, bytes], tmp_path: Path) -> None:
    for kind, data in good.items():
        path = tmp_path / f"{kind}.bin"
        path.write_bytes(data)
        assert read(path) is None
        report = inspect_weights(path, model=TINY, parity=False)
        assert report.healthy
        assert report.layout == ("keras" if kind == "h5" else "timm")


# ---- files that are made to do harm ----


class Code:
    """What unpickling this would run."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, (self.command,))


@pytest.mark.parametrize("place", ["alone", "beside tensors", "as a tensor", "as a name"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle"])
def test_code_in_a_pickle_never_runs(kind: str, place: str, tmp_path: Path) -> None:
    code: Any = Code(f"touch {tmp_path / MARK}")
    content = {
        "alone": code,
        "beside tensors": {"state_dict": good_state(), "args": code},
        "as a tensor": {**good_state(), "conv_stem.weight": code},
        "as a name": {**good_state(), code: torch.ones(1)},
    }[place]
    path = tmp_path / "net.pth"
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        write(content, path, kind)
    error = read(path)
    assert error is not None
    assert "not loaded" in str(error) or "cannot read" in str(error)
    assert not (tmp_path / MARK).exists()
    # The trap is a live one: without weights_only it springs.
    torch.load(path, weights_only=False) if kind != "bare pickle" else pickle.loads(path.read_bytes())
    assert (tmp_path / MARK).exists()


def test_extra_members_of_a_zip_are_left_alone(good: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(good["zip"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../outside.py", "raise SystemExit")
        archive.writestr("net/code/__torch__.py", "raise SystemExit")
    read(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["net.pth"]


def test_a_zip_of_other_things_is_no_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert read(path) is not None


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        header(a={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}) + b"\x00" * 64,
        header(a={"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}) + b"\x00" * 4,
        header(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + b"\x00" * 4,
        header(a={"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}) + b"\x00" * 4,
        header(a={"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}) + b"\x00" * 4,
        header(a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}) + b"\x00" * 4,
        header(a="text"),
        header(__metadata__={"phiscale.spec": "{"}),
        header(__metadata__={"phiscale.spec": "[" * 100_000}),
        struct.pack("<Q", 2**63) + b"{}",
        b"{}{}{}{}{}",
        b"",
        b"\x80",
        b"PK\x03\x04",
        b"\x89HDF\r\n\x1a\n",
        b"\x89HDF\r\n\x1a\n" + b"\xff" * 4096,
    ],
    ids=range(16),
)
def test_lying_headers_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.bin"
    path.write_bytes(data)
    assert read(path) is not None


@pytest.mark.parametrize("spec", ["{", "[" * 100_000, '{"name": "x"}', "null", '{"name": 7, "stages": []}'])
def test_a_false_spec_in_the_header_does_no_harm(spec: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(save(good_state(), {"phiscale.spec": spec}))
    assert read(path) is None


ODD_TENSORS: dict[str, Callable[[], Tensor]] = {
    "a terabyte of one number": lambda: torch.zeros(1).expand(2**20, 2**18, 1, 1),
    "without values": lambda: torch.empty(8, 3, 3, 3, device="meta"),
    "complex": lambda: torch.zeros(8, 3, 3, 3, dtype=torch.complex64),
    "sparse": lambda: torch.zeros(8, 3, 3, 3).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(8, 3, 3, 3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "float8": lambda: torch.zeros(8, 3, 3, 3).to(torch.float8_e4m3fn),
    "a parameter": lambda: torch.nn.Parameter(torch.zeros(8, 3, 3, 3)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["conv_stem.weight", "something.else"])
@pytest.mark.parametrize("what", ODD_TENSORS)
def test_tensors_that_are_nobodys_weights(what: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    write({**good_state(), place: ODD_TENSORS[what]()}, path, "zip")
    error = read(path)
    if place == "conv_stem.weight" and what not in ("a parameter", "complex", "float8"):
        assert error is not None
