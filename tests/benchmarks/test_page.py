from __future__ import annotations

import copy
import json
import runpy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from benchmarks.bars import check
from benchmarks.inference import OUTPUT, SECTIONS, Effort
from benchmarks.measure import machine, versions
from made_results import B0, B4, LITE, ROOFLINE, good

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "make_benchmark_page.py"))


def report(sections: dict[str, Any], *, elsewhere: str | None = None) -> dict[str, Any]:
    """A report whose section `elsewhere`, if any, is of another machine."""
    here: dict[str, Any] = {
        "date": "2026-01-01",
        "machine": machine(2),
        "versions": versions(),
        "effort": asdict(Effort()),
        "seconds": 1.0,
    }
    measured = {name: copy.deepcopy(here) for name, found in sections.items() if found}
    if elsewhere is not None:
        measured[elsewhere].update(date="2026-01-02", versions={"torch": "2.11.0"})
    for load, section in enumerate(measured.values()):
        section["machine"]["load_before"] = float(load)
    made = {
        "sections": sections,
        "measured": measured,
        "bars": [asdict(bar) for bar in check(sections)],
    }
    loaded: dict[str, Any] = json.loads(json.dumps(made))
    return loaded


def whole() -> dict[str, Any]:
    return {
        **good(),
        "roofline": ROOFLINE,
        "training": {
            "rows": [
                {"name": name, "batch": 16, "image_size": [224, 224], "median_ms": ms}
                for name, ms in (("timm", 800.0), ("phiscale", 400.0))
            ]
        },
        "gpu": {
            "gpu": {
                "name": "a GPU",
                "memory_gib": 80,
                "cuda": "13.0",
                "cudnn": 9,
                "tf32": False,
                "tf32_convolutions": True,
            },
            "weights": "random",
            "rows": [
                {
                    "library": "phiscale",
                    "way": "fp16, channels_last",
                    "precision": "fp16",
                    "batch": 1,
                    "median_ms": 1.5,
                    "p90_ms": 1.6,
                    "images_per_second": 666.0,
                    "times_timm": 2.0,
                    "difference": 1e-3,
                    "agreement": 1.0,
                },
                {
                    "library": "timm",
                    "way": "fp16, channels_last, torch.compile",
                    "precision": "fp16",
                    "batch": 1,
                    "error": "TimeoutError: not compiled",
                },
            ],
        },
    }


def test_the_page_shows_every_section() -> None:
    assert set(whole()) == set(SECTIONS)
    page = TOOL["page"](report(whole()))
    for heading in (B0, B4, LITE, "Many images", "A folder of JPEGs", "Cold start", "Packages", "GPU"):
        assert f"## {heading}" in page
    assert "| **phiscale, OpenVINO bf16** | 5.00 | 5.50 | 4.00 | 50% | 1e-02 | 100.0% | 100.0% |" in page
    assert "| openvino 150, numpy 60 |" in page
    assert "| **phiscale** | 400.0 | 40.0 | 2.00 |" in page
    assert (
        "| 1 | timm | fp16, channels_last, torch.compile: TimeoutError: not compiled | – | – | – | – |"
        in page
    )
    assert "{" not in page


def test_every_line_of_a_table_has_its_cells() -> None:
    width = None
    for line in TOOL["page"](report(whole())).splitlines():
        if not line.startswith("|"):
            width = None
            continue
        width = width or line.count("|")
        assert line.count("|") == width, line


def test_sections_of_one_machine_share_a_table() -> None:
    page = TOOL["page"](report(whole()))
    assert page.count("| measured |") == 1
    assert "| load before the run | 0.0 and 1.0 and 2.0" in page


def test_a_section_of_another_machine_has_a_table_of_its_own() -> None:
    page = TOOL["page"](report(whole(), elsewhere="gpu"))
    assert page.count("| measured |") == 2
    assert "| measured | gpu |\n| date | 2026-01-02 |" in page
    assert "torch 2.11.0 |" in page


@pytest.mark.parametrize("name", SECTIONS)
def test_any_section_may_be_missing_or_alone(name: str) -> None:
    everything = whole()
    alone = TOOL["page"](report({name: everything.pop(name)}))
    without = TOOL["page"](report(everything))
    assert alone.count("\n## ") == 2  # the bars and the section
    assert without.count("\n## ") == len(SECTIONS)


def test_what_was_not_measured_is_left_out() -> None:
    page = TOOL["page"](report({"latency": good()["latency"], "gpu": {}}))
    assert "## One image at a time" in page
    assert "## GPU" not in page
    assert "not measured" in page


def test_the_page_stands_in_the_menu_once() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    once = TOOL["in_menu"](menu)
    assert once.count("benchmarks.md") == 1
    assert TOOL["in_menu"](once) == once
    assert (ROOT / "docs" / "benchmarks.md").exists() == ("benchmarks.md" in menu)


@pytest.mark.skipif(not OUTPUT.exists(), reason="nobody ran `make bench`")
def test_the_page_is_that_of_the_results() -> None:
    results = json.loads(OUTPUT.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page == TOOL["page"](results), "run: python tools/make_benchmark_page.py"
    assert "/work" not in OUTPUT.read_text(encoding="utf-8")
