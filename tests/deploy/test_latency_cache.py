from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phiscale.deploy.latency_cache import LatencyCache, latency_folder
from phiscale.deploy.timing import Latency
from small_model import TINY

OTHER = replace(TINY, image_size=(48, 48))
FAST, SLOW = (Latency(median_ms=ms, p90_ms=1.2 * ms, runs=40) for ms in (1.0, 2.0))
CONDITIONS = {"engine": "abacus 1.0", "threads": 2}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    LatencyCache(CONDITIONS, folder=tmp_path / "new").write([TINY, OTHER], [FAST, SLOW], runs=40)
    cache = LatencyCache(CONDITIONS, folder=tmp_path / "new")
    assert cache.read([TINY, OTHER], runs=40) == [FAST, SLOW]
    # Another measurement is another file: other company, other order, other thoroughness.
    assert cache.read([TINY], runs=40) is None
    assert cache.read([OTHER, TINY], runs=40) is None
    assert cache.read([TINY, OTHER], runs=80) is None


def test_labels_and_what_is_for_training_do_not_matter(tmp_path: Path) -> None:
    cache = LatencyCache(CONDITIONS, folder=tmp_path)
    cache.write([TINY], [FAST], runs=40)
    same = replace(TINY, name="other", dropout=0.5, drop_path=0.3, norm_momentum=0.2)
    assert cache.read([same], runs=40) == [FAST]
    for other in (replace(TINY, num_classes=4), replace(TINY, activation="relu"), OTHER):
        assert cache.read([other], runs=40) is None


@pytest.mark.parametrize("change", [{"engine": "abacus 1.1"}, {"threads": 1}, {"machine": "another"}])
def test_the_conditions_matter(change: dict[str, Any], tmp_path: Path) -> None:
    LatencyCache(CONDITIONS, folder=tmp_path).write([TINY], [FAST], runs=40)
    assert LatencyCache({**CONDITIONS, **change}, folder=tmp_path).read([TINY], runs=40) is None


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        "\x00\xff",
        '{"latencies": []}',
        '{"latencies": [{"median_ms": 1}]}',
        '{"latencies": [{"median_ms": "1", "p90_ms": 2, "runs": 3}]}',
        '{"latencies": [{"median_ms": -1, "p90_ms": 2, "runs": 3}]}',
        '{"latencies": [{"median_ms": NaN, "p90_ms": 2, "runs": 3}]}',
        '{"latencies": [{"median_ms": 1, "p90_ms": Infinity, "runs": 3}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_counts_as_absent(damage: str, tmp_path: Path) -> None:
    cache = LatencyCache(CONDITIONS, folder=tmp_path)
    cache.write([TINY], [FAST], runs=40)
    (file,) = tmp_path.glob("*.json")
    file.write_text(damage)
    assert cache.read([TINY], runs=40) is None
    cache.write([TINY], [SLOW], runs=40)
    assert cache.read([TINY], runs=40) == [SLOW]


def test_a_folder_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = LatencyCache(CONDITIONS, folder=tmp_path / "file" / "folder")
    cache.write([TINY], [FAST], runs=40)
    assert cache.read([TINY], runs=40) is None


def test_a_file_says_what_it_is_about(tmp_path: Path) -> None:
    LatencyCache(CONDITIONS, folder=tmp_path).write([TINY], [FAST], runs=40)
    (file,) = tmp_path.iterdir()  # nothing temporary is left
    content = json.loads(file.read_text())
    assert content["conditions"] == CONDITIONS
    assert content["networks"][0]["name"] == "tiny"


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PHISCALE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert latency_folder() == tmp_path / "xdg" / "phiscale" / "latency"
    monkeypatch.setenv("PHISCALE_CACHE", str(tmp_path / "own"))
    assert latency_folder() == tmp_path / "own" / "latency"
