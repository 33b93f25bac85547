from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import study_program
from smooth_pictures import make_images
from typer.testing import CliRunner, Result

from phiscale.deploy.latency import LatencyMeter
from phiscale.deploy.timing import Latency
from phiscale.errors import BudgetError, SpecError, TrainingError
from phiscale.pipeline.study import forecast_study, study_images
from phiscale.pipeline.trial import TrialPlan, plan_trials
from phiscale.scaling.complexity import complexity
from phiscale.search.objective import Report, Score
from phiscale.search.store import TrialStore
from phiscale.search.study import plan_study
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

TINY = NetworkSpec(
    name="tiny",
    stem=StemSpec(out_channels=16),
    stages=(
        StageSpec(block="mbconv", out_channels=16, se_ratio=0.25),
        StageSpec(block="mbconv", out_channels=24, stride=2, expand_ratio=2, num_layers=2),
    ),
    head=HeadSpec(out_channels=64),
    image_size=(24, 24),
)
FILES = {"index.html", "arms.csv", "trainings.csv", "study.json", "figures", "networks", "trials.db"}


class Millisecond:
    """A meter for which each network takes as many milliseconds as it has layers."""

    where = "nowhere in particular"
    batch_size = 1
    measurements = 0

    def __call__(self, specs: Sequence[NetworkSpec], *, runs: int = 1) -> list[Latency]:
        return [Latency(median_ms=spec.num_blocks, p90_ms=spec.num_blocks, runs=1) for spec in specs]


def by_size(
    spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
) -> Score:
    """Larger is better, and every other seed a little."""
    top1 = 0.5 + 0.1 * (1 - TINY.num_blocks / spec.num_blocks) + 0.01 * (seed % 2)
    return Score(top1=top1, epochs=epochs or 1, train_seconds=1.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_images(tmp_path / "images")
    (tmp_path / "tiny.json").write_text(TINY.to_json())
    return tmp_path


@pytest.fixture
def trials(folder: Path) -> TrialPlan:
    return plan_trials(
        folder / "images",
        baseline=folder / "tiny.json",
        overrides={"epochs": 3, "batch_size": 8},
        scratch=folder / "out" / "scratch",
    )


def run(folder: Path, *more: str) -> Result:
    options = ["--baseline", str(folder / "tiny.json"), "--out", str(folder / "out"), "--workers", "1"]
    return CliRunner().invoke(study_program.app, [str(folder / "images"), *options, *more])


def test_a_study_leaves_its_files(trials: TrialPlan, folder: Path) -> None:
    out = folder / "out"
    plan = plan_study(trials.baseline, tables=["table7", "figure4"], levels=[2.0, 4.0])
    result = study_images(
        plan, trials, out, seeds=(0, 1), objective=by_size, meter=Millisecond(), command="phiscale <study>"
    )
    assert {path.name for path in out.iterdir()} - {".lock"} == FILES
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {"table7.png", "table7.svg", "figure4.png", "figure4.svg"}
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "phiscale &lt;study&gt;" in page
    assert "nowhere in particular" in page
    assert "3 epochs, batches of 8" in page
    assert result.epochs == 3
    with (out / "arms.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["latency_ms"]) == int(row["layers"]) for row in rows)
    for part in plan.parts:
        costs = [int(row["macs"]) for row in rows if row["comparison"] == part.title]
        assert costs[0] == complexity(trials.baseline).macs
        assert max(costs[1:]) <= 1.03 * min(costs[1:])


def test_a_study_gone_on_with_is_the_same(trials: TrialPlan, folder: Path) -> None:
    plan = plan_study(trials.baseline, tables=["table7"])
    stopped, whole = folder / "stopped", folder / "whole"
    calls: list[int] = []

    def breaks(
        spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        calls.append(seed)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return by_size(spec, seed=seed, epochs=epochs)

    with pytest.raises(KeyboardInterrupt):
        study_images(plan, trials, stopped, seeds=(0, 1), objective=breaks, meter=Millisecond())
    assert not (stopped / "index.html").exists()
    for out in (stopped, whole):
        study_images(plan, trials, out, seeds=(0, 1), objective=by_size, meter=Millisecond())
    for name in ("arms.csv", "trainings.csv", "study.json", "index.html", "figures/table7.svg"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_other_images_are_another_study(trials: TrialPlan, folder: Path) -> None:
    plan = plan_study(trials.baseline, tables=["table7"])
    study_images(plan, trials, folder / "out", seeds=[0], objective=by_size, meter=Millisecond())
    objective = replace(trials.objective, recipe=trials.objective.recipe.override({"learning_rate": 0.1}))
    other = replace(trials, objective=objective)
    with pytest.raises(TrainingError, match="recipe was"):
        study_images(plan, other, folder / "out", seeds=[0], objective=by_size, meter=Millisecond())


def test_a_forecast_counts_every_training(trials: TrialPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phiscale.pipeline.study.seconds_per_epoch", lambda plan: 2.0)
    plan = plan_study(trials.baseline, tables=["table7"])
    own = complexity(trials.baseline).macs
    epochs_of_the_baseline = 3 * 5 * sum(complexity(spec).macs / own for spec in plan.networks)
    assert forecast_study(plan, trials, 5, workers=2) == pytest.approx(2.0 * epochs_of_the_baseline / 2)


# ---------------------------------------------------------------------------------------- command


def test_a_dry_run_trains_nothing(folder: Path) -> None:
    options = ["--tables", "table7,figure8", "--levels", "2x,4x", "--seeds", "2", "--epochs", "1"]
    result = run(folder, *options, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["forecast_seconds"] > 0
    assert plan["trainings"] == 2 * plan["networks"]
    for comparison in plan["comparisons"]:
        costs = [arm["macs"] for arm in comparison["arms"]]
        assert max(costs) <= 1.03 * min(costs)
    assert not (folder / "out").exists()
    table = run(folder, *options, "--dry-run")
    assert "resolution" in table.output
    assert f"{plan['trainings']} trainings, 1 epochs each" in table.output


def test_a_study_and_the_same_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatencyMeter, "__call__", Millisecond.__call__)
    options = ["--tables", "table7", "--budget", "3x", "--seeds", "1", "--epochs", "1", "--batch-size", "8"]
    first = run(folder, *options)
    assert first.exit_code == 0, first.output
    assert "page     " in first.output
    with TrialStore(folder / "out" / "trials.db") as store:
        trainings = len(store)
    again = run(folder, *options, "--json")
    assert again.exit_code == 0, again.output
    result = json.loads(again.stdout)
    assert trainings == result["plan"]["networks"]
    with TrialStore(folder / "out" / "trials.db") as store:
        assert len(store) == trainings
    assert {row["arm"] for row in result["arms"]} > {"baseline", "width", "compound"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--budget", "big"], BudgetError, "write it like 4x"),
        (["--budget", "0.5x"], BudgetError, "must be more than the baseline's"),
        (["--budget", "4x", "--macs", "9M"], BudgetError, "one of growth, macs and levels"),
        (["--tables", "table9"], SpecError, "known: table7"),
        (["--rule", "nobody"], SpecError, "rule 'nobody' is none of"),
        (["--tables", "table3", "--families", "alexnet"], SpecError, "no network is named 'alexnet'"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, options: list[str], error: type[Exception], message: str
) -> None:
    result = run(folder, *options)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (folder / "out" / "trials.db").exists()


def test_a_rule_from_a_file_makes_the_compound_arm(folder: Path) -> None:
    (folder / "rule.json").write_text('{"alpha": 1.1, "beta": 1.2, "gamma": 1.1}')
    options = ["--rule", str(folder / "rule.json"), "--tables", "table7", "--dry-run", "--json"]
    result = run(folder, *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rule"] == {"alpha": 1.1, "beta": 1.2, "gamma": 1.1}
