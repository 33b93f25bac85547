from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from benchmarks.bars import Bar, check
from made_results import LITE, MIB, good


def failed(sections: Mapping[str, Any]) -> list[Bar]:
    return [bar for bar in check(sections) if bar.verdict != "PASS"]


def test_good_results_pass() -> None:
    assert failed(good()) == []


def test_nothing_measured_is_no_pass() -> None:
    bars = check({})
    assert {bar.verdict for bar in bars} == {"not measured"}
    # Latency twice, engines for three networks in three precisions, throughput twice in each of two ways,
    # folder, cold start.
    assert len(bars) == 2 + 9 + 2 * 2 + 1 + 1


def change(sections: dict[str, Any], section: str, place: int, **values: Any) -> dict[str, Any]:
    changed = copy.deepcopy(sections)
    changed[section]["rows"][place].update(values)
    return changed


@pytest.mark.parametrize(
    ("section", "place", "values", "what"),
    [
        ("latency", 0, {"median_ms": 13.0}, "B0, batch 1: times timm eager, among"),
        ("latency", 2, {"difference": 2e-4}, "B0, batch 1, fp32"),
        ("latency", 2, {"median_ms": 8.5, "rounds_ms": [8.5] * 5}, "efficientnet_b0, batch 1, fp32: time"),
        ("latency", 13, {"rounds_ms": [4.2] * 5}, "efficientnet_b4, batch 1, int8: time"),
        ("throughput", 0, {"images_per_second": 36.0}, "times timm eager"),
        ("throughput", 1, {"images_per_second": 140.0}, "times the best of PyTorch"),
        ("folder", 0, {"seconds": 17.0}, "times timm, image by image"),
        ("folder", 1, {"same_labels": 0.98}, "times transformers, pipeline"),
        ("folder", 2, {"max_rss_bytes": 230 * MIB}, "resident memory"),
        ("cold_start", 0, {"seconds": 1.6}, "cold start"),
        ("packages", 0, {"imports_torch": True}, "cold start"),
    ],
)
def test_each_bar_can_fail(section: str, place: int, values: dict[str, Any], what: str) -> None:
    bars = failed(change(good(), section, place, **values))
    assert any(what in bar.what for bar in bars), bars
    assert {bar.verdict for bar in bars} == {"FAIL"}


def test_the_fastest_counts_only_with_the_same_answers() -> None:
    sections = good()
    lite_int8 = next(
        item
        for item in sections["latency"]["rows"]
        if (item["network"], item["library"], item["precision"]) == (LITE, "phiscale", "int8")
    )
    lite_int8["agreement"] = 0.9
    bar = check(sections)[0]
    assert bar.verdict == "PASS"
    assert "bf16" in bar.found


def test_a_difference_within_the_noise_is_none() -> None:
    noisy = [6.0, 8.0, 7.1, 6.5, 7.6]
    assert failed(change(good(), "latency", 2, rounds_ms=noisy)) == []
    slower = [1.1 * value for value in [7.0] * 5]
    assert failed(change(good(), "latency", 2, rounds_ms=slower)) != []
