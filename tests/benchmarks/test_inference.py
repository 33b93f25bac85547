from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.inference import OUTPUT, Run, main

from benchmarks import inference


@pytest.fixture
def tame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that leaves this process' threads, affinity and environment alone."""
    monkeypatch.setattr(inference, "limit_threads", lambda threads: None)
    monkeypatch.setattr(inference, "_be_quiet", lambda: None)


def sections(monkeypatch: pytest.MonkeyPatch, **found: Any) -> None:
    monkeypatch.setattr(inference, "SECTIONS", found)


def rows(run: Run) -> dict[str, Any]:
    return {"rows": []}


def stop(run: Run) -> dict[str, Any]:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("tame")
def test_an_interrupt_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sections(monkeypatch, latency=rows, throughput=stop, folder=rows)
    output = tmp_path / "results.json"
    assert main(["--output", str(output)]) == 130
    report = json.loads(output.read_text(encoding="utf-8"))
    assert list(report["sections"]) == ["latency"]
    assert {bar["verdict"] for bar in report["bars"]} == {"not measured"}


@pytest.mark.usefixtures("tame")
def test_a_section_that_fails_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: Run) -> dict[str, Any]:
        raise RuntimeError("a peer is broken")

    sections(monkeypatch, latency=fail, throughput=rows)
    output = tmp_path / "results.json"
    assert main(["--output", str(output)]) == 1
    report = json.loads(output.read_text(encoding="utf-8"))
    assert (report["failed"], list(report["sections"])) == (["latency"], ["throughput"])
    assert "a peer is broken" in capsys.readouterr().err


@pytest.mark.usefixtures("tame")
@pytest.mark.parametrize("arguments", [["--quick"], ["--only", "latency"]])
def test_a_part_of_a_run_overwrites_no_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    sections(monkeypatch, latency=rows)
    monkeypatch.setattr(inference, "OUTPUT", tmp_path / OUTPUT.name)
    assert main(arguments) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tame")
def test_a_whole_run_writes_its_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sections(monkeypatch, latency=rows)
    monkeypatch.setattr(inference, "OUTPUT", tmp_path / OUTPUT.name)
    assert main(["--rounds", "3"]) == 0
    report = json.loads((tmp_path / OUTPUT.name).read_text(encoding="utf-8"))
    assert report["effort"]["rounds"] == 3
    assert "torch" in report["versions"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speed"], "invalid choice: 'speed'"),
        (["--rounds", "0"], "at least 1"),
        (["--output", "no/such/folder/results.json"], "does not exist"),
    ],
)
def test_mistakes_get_a_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("tame")
def test_all_of_it_runs(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    main(["--quick", "--threads", "1", "--output", str(output)])
    report = json.loads(output.read_text(encoding="utf-8"))
    assert set(report["sections"]) == set(inference.SECTIONS)
    assert {bar["verdict"] for bar in report["bars"]} <= {"PASS", "FAIL"}
    assert str(tmp_path) not in output.read_text(encoding="utf-8")
