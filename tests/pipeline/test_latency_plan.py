from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from smooth_pictures import make_images

import phiscale as ps
from phiscale.deploy.latency_budget import LatencyFit
from phiscale.deploy.timing import Latency
from phiscale.errors import BudgetError
from phiscale.pipeline.plan import plan_fit, read_plan
from phiscale.spec import NetworkSpec

SHORT = {"epochs": 1, "warmup_epochs": 0, "batch_size": 8}


class Clock:
    """A meter whose times are multiply-adds."""

    where, batch_size = "nowhere", 1

    def __init__(self) -> None:
        self.measurements = 0

    def __call__(self, specs: Sequence[NetworkSpec], *, runs: int = 0) -> list[Latency]:
        self.measurements += len(specs)
        times = [0.1 + ps.complexity(spec).macs / 1e6 for spec in specs]
        return [Latency(median_ms=ms, p90_ms=1.1 * ms, runs=runs) for ms in times]


def test_the_plan_has_the_network_that_is_fast_enough(tmp_path: Path) -> None:
    plan = plan_fit(make_images(tmp_path / "images"), budget=ps.Budget(latency_ms=4.0), meter=Clock())
    assert isinstance(plan.solved, LatencyFit)
    assert plan.solved.latency_ms <= 4.0
    assert plan.spec.num_classes == 3  # measured with the classes of the data
    assert ps.complexity(plan.spec).macs == ps.complexity(plan.solved.spec).macs
    assert any("ms (p90" in note and "nowhere" in note for note in plan.notes)


def test_time_and_multiply_adds_together(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    plan = plan_fit(images, budget=ps.Budget(latency_ms=4.0, macs=2e6), meter=Clock())
    assert ps.complexity(plan.spec).macs <= 2e6
    assert plan.solved is not None
    assert plan.solved.binding == ("macs",)


def test_a_resumed_run_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(tmp_path / "images")
    plan = plan_fit(images, budget=ps.Budget(latency_ms=4.0), meter=Clock(), overrides=SHORT)
    plan.write(tmp_path / "model")
    monkeypatch.setattr("phiscale.deploy.latency.time_in_turn", lambda *_, **__: pytest.fail("measured"))
    again = read_plan(tmp_path / "model")
    assert again.spec == plan.spec
    assert again.budget == plan.budget
    assert again.budget is not None
    assert again.budget["timing"]["median_ms"] <= 4.0


def test_the_model_says_how_fast_it_was(tmp_path: Path) -> None:
    clock = Clock()
    model = ps.fit(
        make_images(tmp_path / "images"),
        tmp_path / "model",
        budget=ps.Budget(latency_ms=2.0),
        meter=clock,
        overrides=SHORT,
        progress=False,
    )
    config = json.loads((model / "config.json").read_text())
    budget = config["provenance"]["budget"]
    assert budget["binding"] == ["latency_ms"]
    assert budget["timing"]["median_ms"] <= 2.0
    assert budget["timing"]["where"] == "nowhere"
    timed = clock.measurements
    ps.fit(tmp_path / "images", model, resume=True, overrides={"epochs": 2}, progress=False)
    assert clock.measurements == timed
    resumed = json.loads((model / "config.json").read_text())
    assert resumed["provenance"]["budget"] == budget


def test_an_impossible_latency_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="but it needs"):
        ps.fit(
            make_images(tmp_path / "images"),
            tmp_path / "model",
            budget=ps.Budget(latency_ms=1e-3),
            meter=Clock(),
        )
    assert not (tmp_path / "model").exists()
