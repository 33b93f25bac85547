"""The bars of training, and its page, on made-up results."""

from __future__ import annotations

import runpy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from benchmarks.measure import machine, versions
from benchmarks.scripts.train_steps import WAYS

from benchmarks import training


def tables(**milliseconds: float) -> list[list[dict[str, Any]]]:
    """Both shapes: each way takes 100 ms and 1000 bytes, but for those that are named."""
    memory = {"ours": 650}
    return [
        [
            training._row(
                way,
                shape,
                [
                    {
                        "steps_ms": [milliseconds.get(way, 100.0)],
                        "peak_bytes": memory.get(way, 1000),
                        "chosen": "",
                    }
                ],
            )
            for way in WAYS
        ]
        for shape in training.SHAPES
    ]


def test_bars_hold_and_fail() -> None:
    assert {bar.verdict for bar in training.check(tables(ours=25.0))} == {"PASS"}
    # As fast as that: four times torchvision at 32 px no longer.
    verdicts = [bar.verdict for bar in training.check(tables(ours=26.0))]
    assert verdicts.count("FAIL") == 1
    # The best of theirs counts.
    failed = [bar for bar in training.check(tables(ours=25.0, **{"timm-cl": 30.0})) if bar.verdict == "FAIL"]
    assert [bar.wanted for bar in failed] == ["≥ 1.3"]
    assert "timm, channels_last" in failed[0].found


def test_what_was_not_measured_is_said() -> None:
    assert {bar.verdict for bar in training.check([[], []])} == {"not measured"}


def test_a_contender_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Done:
        returncode, stderr = 1, "no compiler"

    monkeypatch.setattr(training.subprocess, "run", lambda *_, **__: Done)  # type: ignore[attr-defined]
    assert training.measure(training.QUICK[0], ["timm-compiled"], rounds=2, threads=1) == []
    assert "timm, channels_last, compiled failed:\nno compiler" in capsys.readouterr().out


def test_the_page_says_what_was_found() -> None:
    path = Path(__file__).parents[2] / "tools" / "make_training_page.py"
    tool = runpy.run_path(str(path))
    found = tables(ours=25.0)
    found[0][-1]["chosen"] = ["mixed bf16"]
    measured = {
        "date": "2026-11-25",
        "machine": machine(1),
        "gpu": None,
        "versions": versions(),
        "rounds": 1,
    }
    bars = [asdict(bar) for bar in training.check(found)]
    text = tool["page"]({"measured": measured, "tables": found, "bars": bars})
    assert "| phiscale, as it comes | 1280.0 | 4.00 | 0 |" in text
    assert "Chosen: mixed bf16." in text
    assert text.count("| PASS |") == len(training.BARS)
