"""`phiscale search baseline` and `phiscale search family` on a few pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from smooth_pictures import make_images
from typer.testing import CliRunner, Result

import phiscale as ps
from phiscale.cli.search_baseline import baseline
from phiscale.cli.search_family import family
from phiscale.errors import BudgetError, SpecError, TrainingError
from phiscale.families import get_spec
from phiscale.pipeline.baseline import default_effort, plan_baseline
from phiscale.scaling.budget import Budget
from phiscale.scaling.compound import get_rule
from phiscale.search.family import FAMILY
from phiscale.search.store import TrialStore
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

TINY = NetworkSpec(
    name="tiny",
    stem=StemSpec(out_channels=8),
    stages=(
        StageSpec(block="mbconv", out_channels=8, se_ratio=0.25),
        StageSpec(block="mbconv", out_channels=16, stride=2, expand_ratio=3, num_layers=2),
    ),
    head=HeadSpec(out_channels=32),
    image_size=(24, 24),
    num_classes=3,
)
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(baseline)
app.command()(family)


def run(command: str, images: Path, options: dict[str, Any], *flags: str) -> Result:
    texts = (str(part) for option in options.items() for part in option)
    return CliRunner().invoke(app, [command, str(images), *texts, *flags])


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_images(tmp_path / "images")


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "tiny.json").write_text(TINY.to_json())
    return {
        "--template": tmp_path / "tiny.json",
        "--macs": ps.complexity(TINY).macs,
        "--out": tmp_path / "out",
        "--trials": 3,
        "--generation": 2,
        "--finalists": 1,
        "--epochs": 1,
        "--workers": 1,
    }


def number_of_trainings(store: Path) -> int:
    with TrialStore(store) as recorded:
        return len(recorded)


def test_a_dry_run_trains_nothing(images: Path, options: dict[str, Any], tmp_path: Path) -> None:
    result = run("baseline", images, options, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert NetworkSpec.from_dict(plan["template"]) == TINY
    assert plan["effort"]["proxy_image_size"] == [18, 18]
    assert plan["forecast_seconds"] > 0
    assert not (tmp_path / "out").exists()
    table = run("baseline", images, options, "--dry-run")
    assert "depthwise_separable, mbconv" in table.output


def test_a_search_gives_a_baseline_and_the_same_again(
    images: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("baseline", images, options)
    assert result.exit_code == 0, result.output
    files = ("baseline.json", "candidates.csv", "search.json")
    assert {path.name for path in out.iterdir()} >= {*files, "pareto.png", "pareto.svg", "trials.db"}
    found = get_spec(out / "baseline.json")
    assert found.name == "searched_baseline"
    assert ps.complexity(found).macs <= options["--macs"]
    before = [(out / name).read_bytes() for name in files]
    trainings = number_of_trainings(out / "trials.db")
    again = run("baseline", images, options, "--json")
    assert again.exit_code == 0, again.output
    assert [(out / name).read_bytes() for name in files] == before
    assert number_of_trainings(out / "trials.db") == trainings
    assert json.loads(again.stdout)["directory"] == str(out)


def test_a_named_template_is_scaled_to_the_limit_and_the_images(images: Path) -> None:
    plan = plan_baseline(images, limits=Budget(macs=6e6), overrides={"epochs": 10})
    template = plan.space.template
    assert template.name == "efficientnet_b0"
    assert 4e6 < ps.complexity(template).macs <= 6e6
    assert (template.num_classes, template.in_channels) == (3, 3)
    assert plan.space.decode(plan.space.encode(template)) == template
    effort = default_effort(plan, trials=5, sampler=None)
    assert (effort.trials, effort.sampler, effort.proxy_epochs) == (5, "nsga2", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say what a network may cost"),
        ({"--macs": "10M", "--resize": "fold"}, "resize must be"),
        ({"--macs": "10M", "--template": "resnet50"}, "the template has bottleneck"),
        ({"--macs": "10M", "--sampler": "best", "--workers": 1}, "sampler must be one of"),
        ({"--macs": 10}, "no network on this rule fits"),
        ({"--macs": "10M", "--recipe": "finetune"}, "a search trains from scratch"),
    ],
)
def test_mistakes_are_one_line(images: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    result = run("baseline", images, {**options, "--out": tmp_path / "out"})
    assert isinstance(result.exception, ps.errors.PhiscaleError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_family_and_the_same_again(images: Path, options: dict[str, Any], tmp_path: Path) -> None:
    out, macs = tmp_path / "out", options["--macs"]
    grid = {"--step": 0.5, "--tolerance": 0.3, "--cost-tolerance": 0.8}
    grid |= {"--rule-seeds": 1, "--confirm-seeds": 0}
    arguments = {**options, **grid, "--budgets": f"{2 * macs},{4 * macs}"}
    result = run("family", images, arguments)
    assert result.exit_code == 0, result.output
    members = [
        NetworkSpec.from_dict(json.loads((out / name / "config.json").read_text())["spec"])
        for name in ("s0", "s1", "s2")
    ]
    baseline, rule = get_spec(out / "baseline/baseline.json"), get_rule(out / "coefficients/rule.json")
    costs = [ps.complexity(member).macs for member in members]
    assert costs[0] == ps.complexity(baseline).macs <= macs
    for cost, budget in zip(costs[1:], (2 * macs, 4 * macs), strict=True):
        assert cost == ps.solve_budget(baseline, ps.Budget(macs=budget), rule=rule).complexity.macs
    before = (out / FAMILY).read_bytes()
    weights = [(out / name / "model.safetensors").stat().st_mtime_ns for name in ("s0", "s1", "s2")]
    again = run("family", images, arguments, "--json")
    assert again.exit_code == 0, again.output
    assert (out / FAMILY).read_bytes() == before
    assert [(out / n / "model.safetensors").stat().st_mtime_ns for n in ("s0", "s1", "s2")] == weights
    assert [row["macs"] for row in json.loads(again.stdout)["members"]] == costs
    # Killed after a member's training and before it was recorded: it is not trained again.
    content = json.loads(before)
    del content["stages"]["s2"]
    (out / FAMILY).write_text(json.dumps(content))
    assert run("family", images, arguments).exit_code == 0
    assert json.loads((out / FAMILY).read_text())["stages"]["s2"] == json.loads(before)["stages"]["s2"]
    other = run("family", images, {**arguments, "--trials": 4})
    assert isinstance(other.exception, TrainingError)
    assert "search_trials 3, and now it is 4" in str(other.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--budgets": "20M"}, "say what the baseline may cost"),
        ({"--macs": "10M"}, "must grow"),
        ({"--macs": "10M", "--budgets": "40M,20M"}, "must grow"),
    ],
)
def test_a_family_needs_growing_budgets(images: Path, options: dict[str, Any], message: str) -> None:
    result = run("family", images, options)
    assert isinstance(result.exception, BudgetError)
    assert message in str(result.exception)


def test_a_json_template_is_taken_as_it_is(images: Path) -> None:
    plan = plan_baseline(images, limits=Budget(macs=1e9), template=TINY)
    assert plan.space.template == TINY
    with pytest.raises(SpecError, match="the template has bottleneck"):
        plan_baseline(images, limits=Budget(macs=1e9), template=get_spec("resnet50"))
