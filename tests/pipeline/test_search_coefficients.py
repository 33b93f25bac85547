from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import search_program
from smooth_pictures import make_images
from typer.testing import CliRunner, Result

import phiscale as ps
from phiscale.errors import TrainingError
from phiscale.pipeline.coefficients import run_folder
from phiscale.scaling.compound import get_rule
from phiscale.search.store import TrialStore
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

TINY = NetworkSpec(
    name="tiny",
    stem=StemSpec(out_channels=8),
    stages=(
        StageSpec(block="mbconv", out_channels=8, se_ratio=0.25),
        StageSpec(block="mbconv", out_channels=16, stride=2, expand_ratio=2, num_layers=2),
    ),
    head=HeadSpec(out_channels=32),
    image_size=(24, 24),
)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_images(tmp_path / "images")
    (tmp_path / "tiny.json").write_text(TINY.to_json())
    options = {
        "--baseline": tmp_path / "tiny.json",
        "--out": tmp_path / "out",
        "--step": 0.2,
        "--epochs": 2,
        "--min-epochs": 1,
        "--seeds": 2,
        "--confirm-seeds": 1,
        "--workers": 1,
    }
    return [str(tmp_path / "images"), *(str(part) for option in options.items() for part in option)]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(search_program.app, list(arguments))


def number_of_trainings(out: Path) -> int:
    with TrialStore(out / "trials.db") as store:
        return len(store)


def test_a_dry_run_trains_nothing(arguments: list[str], tmp_path: Path) -> None:
    result = run(*arguments, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["forecast_seconds"] > 0
    assert any(candidate["paper"] for candidate in plan["candidates"])
    assert [rung["epochs"] for rung in plan["rungs"]] == [1, 2, 2]
    assert not (tmp_path / "out").exists()
    table = run(*arguments, "--dry-run")
    assert "1.2,1.1,1.15" in table.output
    assert "confirmation 2 trainings, 2 epochs each" in table.output


def test_a_search_and_the_same_again(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "result   α = " in result.output
    names = {path.name for path in out.iterdir()}
    assert names >= {"rule.json", "ranking.csv", "result.json", "ternary.png", "ternary.svg", "trials.db"}
    assert "scratch" not in names
    rule = get_rule(out / "rule.json")
    spec = ps.compound_scale(TINY, phi=2, rule=rule)
    assert ps.complexity(spec).macs > ps.complexity(TINY).macs
    trainings, first = number_of_trainings(out), (out / "result.json").read_text()
    again = run(*arguments, "--json")
    assert again.exit_code == 0, again.output
    assert number_of_trainings(out) == trainings
    assert (out / "result.json").read_text() == first
    printed = json.loads(again.stdout)
    assert printed["rule"] == {"alpha": rule.alpha, "beta": rule.beta, "gamma": rule.gamma}


def test_another_recipe_is_another_search(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 0
    refused = run(*arguments, "--set", "learning_rate=0.1")
    assert isinstance(refused.exception, TrainingError)
    assert "recipe was" in str(refused.exception)


def test_one_search_at_a_time(tmp_path: Path) -> None:
    with (
        run_folder(tmp_path),
        pytest.raises(TrainingError, match="another search runs"),
        run_folder(tmp_path),
    ):
        pass
    with run_folder(tmp_path):
        pass


def test_what_a_killed_search_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "trial-x").mkdir(parents=True)
    with run_folder(tmp_path):
        assert not (tmp_path / "scratch").exists()


@pytest.mark.slow
def test_the_same_by_ray(arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the cluster extra is not installed")
    here = run(*arguments)
    assert here.exit_code == 0, here.output
    end = arguments.index("--workers")
    command = [sys.executable, search_program.__file__, *arguments[:end]]
    there = subprocess.run(
        [*command, "--ray", "local", "--out", str(tmp_path / "there")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
            # Otherwise Ray writes a token into the home folder.
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert there.returncode == 0, there.stderr
    assert there.stdout.replace("/there/", "/out/") == here.stdout
    rankings = [(tmp_path / name / "ranking.csv").read_text() for name in ("out", "there")]
    assert rankings[0] == rankings[1]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_keeps_what_is_finished(arguments: list[str], tmp_path: Path, workers: str) -> None:
    out = tmp_path / "out"
    command = [sys.executable, search_program.__file__, *arguments, "--workers", workers]
    # Long enough that it is stopped in the middle.
    command += ["--seeds", "3"]
    search = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell's background job, as which the suite may run, has its children ignore SIGINT.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while not (out / "trials.db").exists() or number_of_trainings(out) < 2:
        assert search.poll() is None
        time.sleep(0.05)
    search.send_signal(signal.SIGINT)
    _, errors = search.communicate(timeout=120)
    assert search.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert not (out / "rule.json").exists()
    kept = number_of_trainings(out)
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert number_of_trainings(out) > kept
    assert (out / "rule.json").exists()
