"""Runtimes by name, in many threads, and dying in the middle of the work."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import phiscale as ps
from phiscale.deploy.export_store import RECORD, list_exports
from phiscale.deploy.predictor import FEW, Predictor
from phiscale.deploy.runtimes import base
from phiscale.deploy.runtimes.base import RUNTIMES, Runtime, open_chain, open_runtime
from phiscale.deploy.runtimes.chain import Candidate, RuntimeChain
from phiscale.errors import MissingDependencyError, ModelDirError
from phiscale.weights.config import read_config
from small_model import make_model

EXPORTS = ["onnx-fp32", "openvino-fp32"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("model"))
    ps.export(folder, "onnx")
    ps.export(folder, "openvino")
    return folder


@pytest.fixture
def model_dir(exported: Path, tmp_path: Path) -> Path:
    """A model with two exports, ONNX the faster one, both faster than PyTorch."""
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    for milliseconds, name in enumerate(EXPORTS, start=1):
        record = folder / "exports" / name / RECORD
        latencies = {"export": float(milliseconds), "eager": 3.0}
        record.write_text(json.dumps({**json.loads(record.read_text()), "latency_ms": latencies}))
    return folder


def pictures(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 52, 3), dtype=np.uint8) for _ in range(count)]


def batch(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


# ---------------------------------------------------------------------------------------- by name


@pytest.mark.parametrize(
    ("name", "opened"),
    [
        ("auto", "onnx-fp32"),
        ("onnx", "onnx-fp32"),
        ("openvino", "openvino-fp32"),
        ("openvino-fp32", "openvino-fp32"),
        ("torch", "torch"),
    ],
)
def test_a_runtime_is_named_by_engine_or_export(model_dir: Path, name: str, opened: str) -> None:
    assert ps.load(model_dir, runtime=name).runtime == opened


def test_names_that_lead_nowhere(model_dir: Path) -> None:
    with pytest.raises(ModelDirError, match="no runtime is named 'tensorrt'; there are: auto, torch"):
        ps.load(model_dir, runtime="tensorrt")
    with pytest.raises(ModelDirError, match=r"no export for openvino-int8 .* openvino --precision int8$"):
        ps.load(model_dir, runtime="openvino-int8")
    with pytest.raises(ModelDirError, match=r"no export for inductor .* run: phiscale export \S+ torch$"):
        ps.load(model_dir, runtime="inductor")
    assert {"auto", "torch", "onnx", "openvino"} < set(RUNTIMES)
    assert len(set(RUNTIMES)) == len(RUNTIMES)


def test_a_runtime_that_is_not_installed(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert ps.load(model_dir).runtime == "openvino-fp32"
    with pytest.raises(MissingDependencyError, match=r"pip install 'phiscale\[deploy\]'"):
        ps.load(model_dir, runtime="onnx")


# ------------------------------------------------------------------------------------ many threads


@pytest.mark.parametrize("name", EXPORTS)
def test_throughput_gives_the_same_answers_in_any_thread(model_dir: Path, name: str) -> None:
    runtime = open_runtime(read_config(model_dir), name)
    images = batch(48)
    wanted = runtime(images)
    many = runtime.for_throughput()  # type: ignore[attr-defined]
    for one in (runtime, many):
        with ThreadPoolExecutor(4) as pool:
            found = np.concatenate(list(pool.map(one, np.split(images, 16))))
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_throughput_is_set_up_when_it_is_wanted_and_once(tmp_path: Path) -> None:
    class Fake:
        made = 0

        def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return np.ones((len(images), 3), np.float32)

        def for_throughput(self) -> Runtime:
            Fake.made += 1
            return self

    chain = RuntimeChain([Candidate(name="fake", open=Fake)], path=tmp_path)
    chain(batch(1))
    assert Fake.made == 0
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: chain(batch(1), many=True), range(32)))
    assert Fake.made == 1


FIRST_CALLS = """
import os, sys, threading
from pathlib import Path
import numpy as np
from phiscale.deploy.runtimes.openvino import OpenVinoRuntime

runtime, ready = OpenVinoRuntime(Path(sys.argv[1])), threading.Barrier(4)
sys.setswitchinterval(1e-6)

def call():
    ready.wait()
    runtime(np.zeros((1, 32, 32, 3), np.uint8))

threads = [threading.Thread(target=call, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
os._exit(any(thread.is_alive() for thread in threads))
"""


def test_first_calls_from_many_threads_do_not_wait_for_each_other(model_dir: Path) -> None:
    """OpenVINO's own first calls did, in about a quarter of the runs, and then for ever."""
    (export,) = (one for one in list_exports(read_config(model_dir)) if one.format == "openvino")
    command = [sys.executable, "-c", FIRST_CALLS, str(export.model_path)]
    for _ in range(5):
        assert subprocess.run(command, check=False, timeout=60).returncode == 0


def test_many_images_go_through_the_throughput_runtime_from_the_first(model_dir: Path) -> None:
    asked: list[bool] = []
    predictor = ps.load(model_dir, runtime="openvino")
    runtime = predictor._chain

    def noted(images: NDArray[np.uint8], *, many: bool) -> NDArray[np.float32]:
        asked.append(many)
        return runtime(images, many=many)

    predictor._chain = noted  # type: ignore[assignment]
    predictor.predict([pictures(1)[0]] * (FEW + 1))
    assert set(asked) == {True}
    asked.clear()
    predictor.predict([pictures(1)[0]] * FEW)
    assert set(asked) == {False}
    asked.clear()
    list(predictor.stream(pictures(1)[0] for _ in range(FEW + 5)))
    assert set(asked) == {False, True}


def test_a_runtime_that_knows_no_threads_is_called_by_one_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def single(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.002)
        with guard:
            inside -= 1
        return np.ones((len(images), 3), np.float32)

    chain = RuntimeChain([Candidate(name="single", open=lambda: single)], path=tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: chain(batch(1), many=True), range(40)))
    assert most == 1


def test_modes_agree_along_a_stream(model_dir: Path) -> None:
    """The first images go through the runtime for latency, the others through the one for throughput."""
    images = pictures(3)
    expected = ps.load(model_dir, runtime="torch").predict(images)
    answers = ps.load(model_dir, runtime="openvino").predict([images[i % 3] for i in range(150)])
    for index, answer in enumerate(answers):
        assert answer.labels == expected[index % 3].labels
        assert answer.scores == pytest.approx(expected[index % 3].scores, abs=1e-5)


# ------------------------------------------------------------------------------------------ deaths


class Mortal:
    """A runtime that dies after some calls, in whichever thread that is."""

    def __init__(self, runtime: Runtime, death: Callable[[], Any], calls: int) -> None:
        self._runtime, self._death = runtime, death
        self._left = iter(range(calls))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if next(self._left, None) is not None:
            return self._runtime(images)
        return self._death()  # type: ignore[no-any-return]

    def for_throughput(self) -> Runtime:
        return self


def raises(error: Exception) -> Callable[[], Any]:
    def death() -> None:
        raise error

    return death


def gives_nan() -> NDArray[np.float32]:
    return np.full((4, 3), np.nan, np.float32)


DEATHS = [
    raises(RuntimeError("engine\nException from src/cpp: out of memory")),
    raises(MemoryError()),
    gives_nan,
]


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("calls", [0, 1, 20])
def test_a_stream_survives_the_death_of_its_runtime(
    model_dir: Path,
    death: Callable[[], Any],
    calls: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = pictures(120)
    expected = ps.load(model_dir, runtime="torch").predict(images)
    real = base.open_export

    def mortal(export: Any) -> Runtime:
        return Mortal(real(export), death, calls) if export.format == "onnx" else real(export)

    monkeypatch.setattr(base, "open_export", mortal)
    with caplog.at_level(logging.WARNING):
        model = ps.load(model_dir)
        answers = model.predict(images)
    assert model.runtime == "openvino-fp32"
    [record] = caplog.records
    assert record.getMessage().startswith("onnx-fp32 ")
    assert record.getMessage().endswith("; going on with openvino-fp32")
    assert "\n" not in record.getMessage()
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.labels == wanted.labels
        assert answer.scores == pytest.approx(wanted.scores, abs=1e-5)


@pytest.mark.parametrize("name", ["auto", "openvino"])
def test_the_last_resort_is_torch(
    model_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = base.open_export
    monkeypatch.setattr(base, "open_export", lambda export: Mortal(real(export), DEATHS[0], 1))
    model = ps.load(model_dir, runtime=name)
    images = pictures(30)
    assert [answer.labels for answer in model.predict(images)] == [
        answer.labels for answer in ps.load(model_dir, runtime="torch").predict(images)
    ]
    assert model.runtime == "torch"
    assert len(caplog.records) == (2 if name == "auto" else 1)


def test_no_runtime_is_left(model_dir: Path, tmp_path: Path) -> None:
    config = read_config(model_dir)
    for death, message in (
        (DEATHS[0], r"^no runtime works for .*: Mortal failed: Exception from src/cpp: out of memory$"),
        (DEATHS[1], r"^no runtime works for .*: Mortal failed: MemoryError$"),
        (DEATHS[2], r"^the network in .* gives NaN; its weights are broken, train again$"),
    ):
        dying = Predictor(config, Mortal(lambda images: np.ones((len(images), 3), np.float32), death, 5))
        stream = dying.stream(pictures(60))
        with pytest.raises(ModelDirError, match=message):
            list(stream)
        assert not any(thread.name.startswith("predict") for thread in threading.enumerate())
    # The next one cannot be opened either.
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    chain = open_chain(config, "onnx")
    chain._now.runtime = Mortal(open_runtime(config, "onnx"), DEATHS[0], 0)
    with pytest.raises(ModelDirError, match=r"^onnx-fp32 failed: .* out of memory, and then: .*damaged"):
        chain(batch(1))


def test_an_interrupt_is_no_death() -> None:
    def stop(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise KeyboardInterrupt

    chain = RuntimeChain([Candidate(name="stop", open=lambda: stop)], path=Path("model"))
    with pytest.raises(KeyboardInterrupt):
        chain(batch(1))


def test_what_does_not_open_is_left_aside(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    (model_dir / "exports" / "onnx-fp32" / "model.onnx").write_bytes(b"no graph")
    assert ps.load(model_dir).runtime == "openvino-fp32"
    assert "onnx-fp32 is left aside: " in caplog.text
    assert "model.onnx is damaged; export again" in caplog.text


def endless() -> Iterator[NDArray[np.uint8]]:
    yield from itertools.cycle(pictures(3))


def test_memory_is_bounded(model_dir: Path) -> None:
    """However slow the runtime is, no more than two batches per thread are read ahead."""
    taken = 0

    def counted() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        for image in endless():
            taken += 1
            yield image

    stream = ps.load(model_dir, runtime="onnx").stream(counted(), batch_size=2)
    for number in range(1, 200):
        next(stream)
        assert taken <= number + 2 * 2 * base.cores()
    stream.close()  # type: ignore[attr-defined]
