from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from phiscale.cli.main import app
from phiscale.cli.units import format_bytes, format_count
from phiscale.errors import BudgetError, PhiscaleError, SpecError
from phiscale.families import get_spec
from phiscale.scaling.budget import Budget, BudgetFit, solve_budget
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES, CompoundRule, Scaling, compound_scale, scale
from phiscale.spec import NetworkSpec

B0 = get_spec("efficientnet_b0")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["scale", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def row_of(output: str, name: str) -> list[str]:
    (row,) = [line.split() for line in output.splitlines() if line.split()[:1] == [name]]
    return row


def cells(spec: NetworkSpec, scaling: Scaling, batch_size: int = 1) -> list[str]:
    cost = complexity(spec, batch_size)
    memory = [cost.inference_bytes, cost.training_bytes, cost.file_bytes]
    return [
        *(f"{factor:.3g}" for factor in (scaling.depth, scaling.width, scaling.resolution)),
        f"{spec.image_size[0]}×{spec.image_size[1]}",
        str(spec.num_blocks),
        *(format_count(count) for count in (cost.params, cost.macs, cost.activations)),
        *(part for size in memory for part in format_bytes(size).split()),
    ]


# ----------------------------------------------------------------------------------- with a budget


def test_a_budget_is_solved_along_every_rule() -> None:
    output = run("efficientnet_b0", "--macs", "1G")
    assert row_of(output, "baseline") == ["baseline", *cells(B0, Scaling())]
    for name in ("paper", "dWr", "depth", "width", "resolution"):
        fit = solve_budget(B0, Budget(macs=1e9), rule=RULES[name])
        assert row_of(output, name) == [name, f"{fit.phi:g}", *cells(fit.spec, fit.scaling)]
    assert output.startswith("efficientnet_b0 → φ = 1.03: depth × 1.21, width × 1.1, resolution × 1.15\n")
    assert "uses 99.4% of the multiply-adds (994M, binds)" in output


def test_json_holds_what_was_solved() -> None:
    result = json.loads(
        run("efficientnet_b0", "--macs", "1G", "--training-memory", "5GB", "--batch-size", "8", "--json")
    )
    budget = Budget(macs=1e9, training_bytes=5e9)
    fit = solve_budget(B0, budget, batch_size=8)
    assert result["phi"] == fit.phi
    assert NetworkSpec.from_dict(result["spec"]) == fit.spec
    assert result["complexity"]["macs"] == fit.complexity.macs
    assert result["complexity"]["training_bytes"] == fit.complexity.training_bytes
    assert result["scaling"] == {
        "depth": fit.scaling.depth,
        "width": fit.scaling.width,
        "resolution": fit.scaling.resolution,
    }
    assert list(result["rules"]) == ["paper", "dWr", "depth", "width", "resolution"]
    assert result["rules"]["paper"]["costs"] == fit.costs
    assert result["rules"]["paper"]["utilization"] == fit.utilization
    assert result["rules"]["paper"]["binding"] == list(fit.binding)
    assert result["rules"]["paper"]["image_size"] == list(fit.spec.image_size)


LIMITS: list[tuple[str, str, dict[str, float]]] = [
    ("--macs", "300M", {"macs": 300e6}),
    ("--params", "6M", {"params": 6e6}),
    ("--inference-memory", "50MiB", {"inference_bytes": 50 * 2**20}),
    ("--training-memory", "0.5GB", {"training_bytes": 0.5e9}),
    ("--file-size", "30MB", {"file_bytes": 30e6}),
]


@pytest.mark.parametrize(("option", "value", "limits"), LIMITS)
def test_every_limit_reaches_the_budget(option: str, value: str, limits: dict[str, float]) -> None:
    result = json.loads(run("efficientnet_b0", option, value, "--json"))
    fit: BudgetFit = solve_budget(B0, Budget(**limits))
    assert NetworkSpec.from_dict(result["spec"]) == fit.spec
    assert list(result["rules"]["paper"]["costs"]) == list(limits)


def test_a_rule_that_cannot_is_said_to() -> None:
    output = run("efficientnet_b0", "--params", "8M")
    assert "resolution: params set no bound on this rule" in output
    result = json.loads(run("efficientnet_b0", "--params", "8M", "--json"))
    assert "set no bound" in result["rules"]["resolution"]["error"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("dWr", RULES["dWr"]),
        ("uniform", RULES["uniform"]),
        ("1.3,1.05,1.1", CompoundRule(alpha=1.3, beta=1.05, gamma=1.1)),
        ("FILE", CompoundRule(alpha=1.1, beta=1.2, gamma=1.0)),
    ],
)
def test_rules(rule: str, expected: CompoundRule, tmp_path: Path) -> None:
    if rule == "FILE":
        path = tmp_path / "rule.json"
        path.write_text('{"alpha": 1.1, "beta": 1.2, "gamma": 1.0}', encoding="utf-8")
        rule = str(path)
    result = json.loads(run("efficientnet_b0", "--macs", "1G", "--rule", rule, "--json"))
    fit = solve_budget(B0, Budget(macs=1e9), rule=expected)
    assert next(iter(result["rules"])) == rule
    assert NetworkSpec.from_dict(result["spec"]) == fit.spec


# ------------------------------------------------------------------------- with φ or with factors


@pytest.mark.parametrize("phi", [1.5, -2.0, 0.0])
def test_phi(phi: float) -> None:
    output = run("efficientnet_b0", "--phi", str(phi))
    scaled = compound_scale(B0, phi=phi)
    assert row_of(output, "scaled") == ["scaled", f"{phi:g}", *cells(scaled, RULES["paper"].at(phi))]
    result = json.loads(run("efficientnet_b0", "--phi", str(phi), "--json"))
    assert NetworkSpec.from_dict(result["spec"]) == scaled
    assert (result["phi"], result["rules"]) == (phi, {})


def test_factors() -> None:
    arguments = ["efficientnet_b0", "--depth", "1.4", "--width", "1.2", "--resolution", "1.3"]
    scaled = scale(B0, depth=1.4, width=1.2, resolution=1.3)
    row = row_of(run(*arguments), "scaled")
    assert row == ["scaled", *cells(scaled, Scaling(depth=1.4, width=1.2, resolution=1.3))]
    assert row[4] == "291×291"
    result = json.loads(run(*arguments, "--json"))
    assert result["phi"] is None
    assert result["scaling"] == {"depth": 1.4, "width": 1.2, "resolution": 1.3}
    assert NetworkSpec.from_dict(result["spec"]) == scaled


def test_one_factor_leaves_the_others() -> None:
    result = json.loads(run("resnet50", "--width", "2", "--json"))
    assert NetworkSpec.from_dict(result["spec"]) == scale(get_spec("resnet50"), width=2.0)


# ----------------------------------------------------------------------------------------- files


def test_output_is_a_spec_that_every_command_takes(tmp_path: Path) -> None:
    path = tmp_path / "scaled.json"
    output = run("efficientnet_b0", "--macs", "500M", "--output", str(path))
    assert f"wrote {path}" in output
    fit = solve_budget(B0, Budget(macs=5e8))
    assert get_spec(path) == fit.spec
    again = json.loads(run(str(path), "--phi", "1", "--json"))
    assert NetworkSpec.from_dict(again["spec"]) == compound_scale(fit.spec, phi=1.0)
    summary = CliRunner().invoke(app, ["summary", str(path)], catch_exceptions=False)
    assert f"{fit.complexity.params:,} parameters" in summary.stdout


def test_a_user_s_baseline(tmp_path: Path) -> None:
    own = replace(get_spec("mobilenet_v2"), name="own [/x]", image_size=(96, 192))
    path = tmp_path / "own.json"
    path.write_text(own.to_json(), encoding="utf-8")
    output = run(str(path), "--macs", "100M")
    fit = solve_budget(own, Budget(macs=1e8))
    assert output.startswith("own [/x] → φ = ")
    assert row_of(output, "paper") == ["paper", f"{fit.phi:g}", *cells(fit.spec, fit.scaling)]


@pytest.mark.parametrize("arguments", [["--macs", "500M"], ["--phi", "1"], ["--depth", "2"]])
def test_plot_png(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    run("efficientnet_b0", *arguments, "--plot", str(path))
    with Image.open(path) as image:
        assert image.format == "PNG"
        colours = image.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 50
    assert min(image.size) > 200


def test_plot_svg(tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    output = run("efficientnet_b0", "--macs", "500M", "--plot", str(path))
    text = path.read_text(encoding="utf-8")
    assert "<svg" in text
    assert f"wrote {path}" in output


def test_a_long_path_is_printed_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40) / "[bold]"
    folder.mkdir(parents=True)
    path = folder / "spec.json"
    assert f"wrote {path}\n" in run("efficientnet_b0", "--phi", "1", "--output", str(path))


def test_json_prints_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    result: dict[str, Any] = json.loads(run("efficientnet_b0", "--phi", "1", "--output", str(path), "--json"))
    assert NetworkSpec.from_dict(result["spec"]) == get_spec(path)


# -------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], SpecError, "say what to scale to in one way"),
        (["--macs", "1G", "--phi", "1"], SpecError, "say what to scale to in one way"),
        (["--phi", "1", "--depth", "2"], SpecError, "say what to scale to in one way"),
        (["--phi", "100"], SpecError, "blocks; at most 10,000 are counted"),
        (["--phi", "nan"], SpecError, "must be a positive finite factor"),
        (["--width", "-1"], SpecError, "width must be a positive finite factor, got -1.0"),
        (["--resolution", "0.001"], SpecError, "leaves no pixel"),
        (["--macs", "1G", "--rule", "papers"], SpecError, "rule 'papers' is none of paper, uniform"),
        (["--macs", "1k"], BudgetError, "macs=1,000 but it needs"),
        (["--params", "1M", "--rule", "resolution"], BudgetError, "params=1,000,000 but it needs 5,288,548"),
        (["--phi", "1", "--plot", "picture.txt"], SpecError, "picture.txt must end in .png, .svg or .pdf"),
        (
            ["--phi", "1", "--output", "missing/spec.json"],
            SpecError,
            "cannot write missing/spec.json: No such",
        ),
        (["--phi", "1", "--plot", "missing/a.png"], SpecError, "cannot write missing/a.png: No such"),
    ],
)
def test_mistakes(
    arguments: list[str],
    error: type[PhiscaleError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run("efficientnet_b0", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["--macs", "abc"], ["--params", "-3"], ["--file-size", "3XB"], ["--macs", "1G", "--batch-size", "0"]],
)
def test_wrong_options(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["scale", "efficientnet_b0", *arguments])
    assert result.exit_code == 2
    assert "Error: Invalid value for" in result.output
