from __future__ import annotations

import sys
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import pytest
from benchmarks.closure import size_of
from benchmarks.folder import Program, ProgramError, run_cold_start, run_packages, run_program
from benchmarks.launch import main as launch
from benchmarks.measure import interleave, ratio
from benchmarks.roofline import Roofline, measure_roofline

MIB = 2**20
LABELS = "import sys, json, pathlib; pathlib.Path(sys.argv[-1]).write_text(json.dumps([0]))"


def script(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def program(path: Path, text: str = LABELS) -> Program:
    file = script(path / "program.py", text)
    return Program(
        name="a program",
        library="somebody",
        command=lambda images, labels: [str(file), str(images), str(labels)],
        read=lambda text: [int(text.strip("[]"))],
    )


def test_everybody_has_a_turn_in_every_round() -> None:
    called: list[str] = []
    timings = interleave({name: partial(called.append, name) for name in "abc"}, rounds=4, warmup=1)
    assert {name: len(timing.rounds_ms) for name, timing in timings.items()} == {"a": 4, "b": 4, "c": 4}
    turns = [name for name, before in zip(called[3:], ["", *called[3:]], strict=False) if name != before]
    # The order turns by one in each round; where a round ends with whom the next begins, the turns are one.
    assert "".join(turns) == "abcabcabcabc"[:3] + "bca" + "cab" + "abc"


def test_a_slow_call_is_measured_slower() -> None:
    def slow() -> int:
        return sum(range(200_000))

    timings = interleave({"slow": slow, "fast": lambda: None}, rounds=3)
    assert timings["slow"].median_ms > 10 * timings["fast"].median_ms
    assert timings["slow"].p90_ms >= min(timings["slow"].rounds_ms)


def test_the_interval_of_a_ratio_tells_noise_from_a_difference() -> None:
    rounds = [10.0, 11.0, 10.5, 10.2, 10.8, 10.1, 10.9]
    median, low, high = ratio([1.2 * value for value in rounds], rounds)
    assert (median, low, high) == pytest.approx((1.2, 1.2, 1.2))
    _, low, high = ratio(rounds, rounds[::-1])
    assert low < 1 < high


def test_the_limit_is_the_least_time() -> None:
    roofline = Roofline(fp32=100.0, bf16=200.0, int8=400.0, gigabytes=10.0)
    assert roofline.limit_ms(50_000_000, "fp32") == pytest.approx(1.0)
    assert roofline.limit_ms(50_000_000, "int8") == pytest.approx(0.25)


@pytest.mark.slow
def test_the_machine_has_a_limit() -> None:
    assert all(value > 1 for value in measure_roofline(rounds=1).to_dict().values())


def test_launch_counts_the_childs_memory_and_not_its_own(tmp_path: Path) -> None:
    found = {}
    for name, text in (("small", LABELS), ("large", f"held = bytearray({200 * MIB})\n{LABELS}")):
        ran, labels = run_program(program(tmp_path, text), tmp_path, tmp_path)
        assert labels == [0]
        found[name] = ran["max_rss_bytes"]
    # This process has torch in it, and is far larger than the small one.
    assert found["small"] < 100 * MIB
    assert 200 * MIB < found["large"] < 300 * MIB


def test_launch_hands_on_the_exit_code(tmp_path: Path) -> None:
    assert launch(str(tmp_path / "report.json"), [sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="a program failed: ValueError: no such network"):
        run_program(program(tmp_path, "raise ValueError('no such network')"), tmp_path, tmp_path)


def test_cold_start_runs_a_program_as_often_as_asked(tmp_path: Path) -> None:
    (row,) = run_cold_start([program(tmp_path)], tmp_path, rounds=2)
    assert len(row["rounds_seconds"]) == 2
    assert row["seconds"] > 0


def test_packages_are_those_that_a_program_imports(tmp_path: Path) -> None:
    (row,) = run_packages([program(tmp_path, f"import yaml\n{LABELS}")], tmp_path)
    assert list(row["packages"]) == ["PyYAML"]
    assert not row["imports_torch"]
    assert row["bytes"] == size_of(distribution("pyyaml")) > 100_000
