from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phiscale.deploy import latency as latency_module
from phiscale.deploy.latency import LatencyMeter
from phiscale.deploy.random_network import opened, random_images, random_tensors
from phiscale.deploy.setting import PRECISIONS, Setting, default_engine
from phiscale.deploy.timing import Latency
from phiscale.errors import MissingDependencyError, ModelDirError
from phiscale.families import get_spec
from phiscale.spec import NetworkSpec
from phiscale.weights.shapes import tensor_shapes
from small_model import TINY

OTHER = replace(TINY, image_size=(48, 48))
SETTINGS = [
    Setting(runtime=runtime, precision=precision, threads=1)  # type: ignore[arg-type]
    for runtime, precisions in PRECISIONS.items()
    for precision in precisions
    if precision != "int8"
]


# ------------------------------------------------------------------------------------ settings


def test_mistakes_in_a_setting_say_what_there_is() -> None:
    with pytest.raises(ModelDirError, match="no runtime is named 'abacus'; there are: openvino, onnx, torch"):
        Setting(runtime="abacus")  # type: ignore[arg-type]
    with pytest.raises(ModelDirError, match="onnx is timed in fp32, not in int8"):
        Setting(runtime="onnx", precision="int8")
    for name in ("threads", "batch_size"):
        with pytest.raises(ModelDirError, match=f"{name} must be at least 1, got 0"):
            Setting(**{name: 0})  # type: ignore[arg-type]


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "phiscale.deploy.setting.PACKAGES",
        {"openvino": "no-such-package", "onnx": "nor-this", "torch": "torch"},
    )
    with pytest.raises(MissingDependencyError, match=r"pip install 'phiscale\[deploy\]'"):
        Setting(runtime="openvino")
    assert default_engine() == "torch"


def test_a_setting_in_words() -> None:
    text = str(Setting(runtime="torch", threads=1))
    assert text.startswith("torch ")
    assert text.endswith(", fp32, 1 thread, 1 image at a time")


# ------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0", "resnet18", "mobilenet_v1"])
def test_random_networks_keep_their_signal(name: str) -> None:
    """Weights that let activations vanish would be timed on denormal numbers."""
    spec = replace(get_spec(name), image_size=(64, 64), num_classes=10)
    tensors = random_tensors(spec)
    assert {key: value.shape for key, value in tensors.items()} == tensor_shapes(spec)
    assert all(value.dtype == np.float32 for value in tensors.values())
    again = random_tensors(spec)
    assert all(np.array_equal(value, again[key]) for key, value in tensors.items())
    images = random_images(spec, 2)
    with opened(spec, Setting(runtime="torch", threads=1)) as runtime:
        scores = runtime(images)
    assert np.isfinite(scores).all()
    assert scores.std() > 1e-3  # the classes are told apart, though at random


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_network_runs_as_its_export_would(setting: Setting) -> None:
    images = random_images(TINY, 3)
    assert images.shape == (3, 32, 32, 3)
    with opened(TINY, Setting(runtime="torch", threads=1)) as eager, opened(TINY, setting) as runtime:
        difference = np.abs(runtime(images) - eager(images)).max()
    assert difference < (0.1 if setting.precision == "bf16" else 1e-5)


def test_int8_is_really_quantised(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    images = random_images(TINY, 2)
    with (
        opened(TINY, Setting(runtime="openvino", precision="int8", threads=1)) as int8,
        opened(TINY, Setting(runtime="openvino", threads=1)) as fp32,
    ):
        difference = np.abs(int8(images) - fp32(images)).max()
    assert 0 < difference < 0.2


def test_the_threads_of_torch_are_given_back() -> None:
    import torch

    before = torch.get_num_threads()
    with opened(TINY, Setting(runtime="torch", threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------------------------------- meter


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_real_measurement(setting: Setting, tmp_path: Path) -> None:
    seen: list[NetworkSpec] = []
    steps: list[tuple[int, int]] = []
    meter = LatencyMeter(
        setting,
        folder=tmp_path,
        on_measured=lambda spec, _: seen.append(spec),
        progress=lambda *step: steps.append(step),
    )
    found = meter([TINY, OTHER], runs=8)
    assert [latency.median_ms > 0 for latency in found] == [True, True]
    assert all(latency.median_ms <= latency.p90_ms for latency in found)
    assert all(latency.runs >= 8 for latency in found)
    assert seen == [TINY, OTHER]
    assert meter.measurements == 2
    assert steps == [(done, 10) for done in range(1, 11)]
    assert setting.engine in meter.where


class Fake:
    """Stands in for the timing: numbers that count up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, p90: float = 1.1) -> None:
        self.calls = 0
        self.p90 = p90
        monkeypatch.setattr(latency_module, "time_in_turn", self)

    def __call__(self, networks: Sequence[Any], *, runs: int, progress: object) -> list[Latency]:
        self.calls += 1
        return [
            Latency(median_ms=self.calls + index, p90_ms=(self.calls + index) * self.p90, runs=runs)
            for index in range(len(networks))
        ]


def test_what_was_measured_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake, setting = Fake(monkeypatch), Setting(runtime="torch", threads=1)
    meter = LatencyMeter(setting, folder=tmp_path)
    first = meter([TINY])
    assert meter([TINY]) == first
    later = LatencyMeter(setting, folder=tmp_path)
    assert later([replace(TINY, name="the same")]) == first
    assert (fake.calls, meter.measurements, later.measurements) == (1, 1, 0)
    # In company it is measured anew, for the two are to be compared.
    assert [latency.median_ms for latency in later([TINY, OTHER])] == [2, 3]
    assert (fake.calls, later.measurements) == (2, 2)


def test_other_settings_are_other_measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Fake(monkeypatch)
    settings = [
        Setting(runtime="torch", threads=1),
        Setting(runtime="torch", threads=2),
        Setting(runtime="torch", threads=1, batch_size=2),
        Setting(runtime="onnx", threads=1),
    ]
    for setting in settings:
        LatencyMeter(setting, folder=tmp_path)([TINY])
    assert fake.calls == len(settings)


def test_fresh_measures_again_and_keeps_the_new_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake, setting = Fake(monkeypatch), Setting(runtime="torch", threads=1)
    LatencyMeter(setting, folder=tmp_path)([TINY])
    fresh = LatencyMeter(setting, folder=tmp_path, fresh=True)
    again = fresh([TINY])
    assert again[0].median_ms == 2
    assert fresh([TINY]) == again  # once is enough
    assert LatencyMeter(setting, folder=tmp_path)([TINY]) == again
    assert fake.calls == 2


def test_nothing_is_kept_on_disk_on_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake, setting = Fake(monkeypatch), Setting(runtime="torch", threads=1)
    for _ in range(2):
        LatencyMeter(setting, folder=tmp_path, remember=False)([TINY])
    assert fake.calls == 2
    assert list(tmp_path.iterdir()) == []


def test_a_busy_machine_is_not_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake, setting = Fake(monkeypatch, p90=3.0), Setting(runtime="torch", threads=1)
    meter = LatencyMeter(setting, folder=tmp_path)
    assert meter([TINY]) == meter([TINY])  # within a process it counts
    LatencyMeter(setting, folder=tmp_path)([TINY])
    assert fake.calls == 2


def test_ctrl_c_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> list[Latency]:
        raise KeyboardInterrupt

    monkeypatch.setattr(latency_module, "time_in_turn", interrupt)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    meter = LatencyMeter(Setting(runtime="onnx", threads=1), folder=tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        meter([TINY])
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "cache").exists()
    assert meter.measurements == 0
