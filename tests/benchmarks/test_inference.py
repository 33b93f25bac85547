from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.inference import OUTPUT, Run, main
from made_results import LITE

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


def nothing(run: Run) -> dict[str, Any]:
    return {}


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
    assert list(report["sections"]) == ["throughput"]
    said = capsys.readouterr()
    assert "a peer is broken" in said.err
    assert "failed: latency" in said.out


@pytest.mark.usefixtures("tame")
def test_a_quick_run_writes_no_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sections(monkeypatch, latency=rows)
    monkeypatch.setattr(inference, "OUTPUT", tmp_path / OUTPUT.name)
    assert main(["--quick"]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tame")
def test_a_part_of_a_run_leaves_the_other_sections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / OUTPUT.name
    monkeypatch.setattr(inference, "OUTPUT", output)
    sections(monkeypatch, latency=rows, throughput=rows, gpu=rows)
    assert main(["--rounds", "3"]) == 0
    before = json.loads(output.read_text(encoding="utf-8"))
    # No GPU any more: nothing was measured, and what was stays.
    sections(monkeypatch, latency=lambda run: {"rows": [], "new": True}, throughput=rows, gpu=nothing)
    assert main(["--rounds", "5", "--only", "latency", "gpu"]) == 0
    after = json.loads(output.read_text(encoding="utf-8"))
    assert list(after["sections"]) == ["latency", "throughput", "gpu"]
    assert after["sections"]["latency"]["new"]
    assert [after["measured"][name]["effort"]["rounds"] for name in after["sections"]] == [5, 3, 3]
    for name in ("throughput", "gpu"):
        assert after["measured"][name] == before["measured"][name]


@pytest.mark.usefixtures("tame")
def test_sections_of_another_machine_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    sections(monkeypatch, latency=rows, gpu=rows)
    assert main(["--only", "latency", "--output", str(here)]) == 0
    assert main(["--only", "gpu", "--rounds", "3", "--output", str(there)]) == 0
    sections(monkeypatch, latency=stop, gpu=stop)
    assert main(["--take", str(there), "--output", str(here)]) == 0
    report = json.loads(here.read_text(encoding="utf-8"))
    assert [report["measured"][name]["effort"]["rounds"] for name in ("latency", "gpu")] == [11, 3]


@pytest.mark.usefixtures("tame")
def test_a_section_is_written_when_it_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / "results.json"

    def look(run: Run) -> dict[str, Any]:
        assert list(json.loads(output.read_text(encoding="utf-8"))["sections"]) == ["latency"]
        return {"rows": []}

    sections(monkeypatch, latency=rows, throughput=look)
    assert main(["--output", str(output)]) == 0


@pytest.mark.usefixtures("tame")
def test_another_programs_file_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections(monkeypatch, latency=rows)
    output = tmp_path / "config.json"
    for text in ("{}", "not JSON"):
        output.write_text(text, encoding="utf-8")
        assert main(["--output", str(output)]) == 2
        assert output.read_text(encoding="utf-8") == text
    assert "config.json holds no results" in capsys.readouterr().err


@pytest.mark.usefixtures("tame")
def test_a_whole_run_writes_its_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sections(monkeypatch, latency=rows)
    monkeypatch.setattr(inference, "OUTPUT", tmp_path / OUTPUT.name)
    assert main(["--rounds", "3"]) == 0
    report = json.loads((tmp_path / OUTPUT.name).read_text(encoding="utf-8"))
    assert report["measured"]["latency"]["effort"]["rounds"] == 3
    assert "torch" in report["measured"]["latency"]["versions"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speed"], "invalid choice: 'speed'"),
        (["--rounds", "0"], "at least 1"),
        (["--take", "no-such.json"], "there is no file"),
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
    assert set(report["sections"]) | {"gpu"} == set(inference.SECTIONS)
    # The export refuses int8 of untrained networks where it answers at random, as it does at so small a size.
    missing = [bar["what"] for bar in report["bars"] if bar["verdict"] == "not measured"]
    assert all("int8" in what and LITE not in what for what in missing)
    assert str(tmp_path) not in output.read_text(encoding="utf-8")
