from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import phiscale.cluster
from phiscale.cli.searching import Place, default_workers, format_interval, print_forecast, stoppable
from phiscale.search.statistics import confidence_interval

HERE: dict[str, Any] = {"workers": None, "ray": None, "cpus_per_trial": 1, "gpus_per_trial": 0.0}


@pytest.mark.parametrize("given", [{"cpus_per_trial": 2}, {"gpus_per_trial": 0.5}])
def test_what_belongs_to_a_cluster(given: dict[str, Any]) -> None:
    with pytest.raises(typer.BadParameter, match="go with --ray"):
        Place(**HERE | given)


def test_workers_are_of_this_machine() -> None:
    with pytest.raises(typer.BadParameter, match="--workers is for this machine"):
        Place(**HERE | {"ray": "auto", "workers": 2})


def test_this_machine(tmp_path: Path) -> None:
    place = Place(**HERE | {"workers": 3})
    assert place.scratch(tmp_path) == tmp_path / "scratch"
    with place.open() as (backend, at_a_time):
        assert (backend, at_a_time) == (None, 3)
    with Place(**HERE).open() as (_, at_a_time):
        assert at_a_time == default_workers()


@pytest.mark.parametrize("here", [True, False])
def test_on_a_cluster_the_options_say_whether_there_are_gpus(
    here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    assert Place(**HERE).has_gpus() is here
    assert Place(**HERE | {"ray": "auto"}).has_gpus() is False
    assert Place(**HERE | {"ray": "auto", "gpus_per_trial": 0.5}).has_gpus() is True


def test_a_cluster_trains_as_many_as_it_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, float]]] = []

    class Cluster(phiscale.cluster.RayBackend):
        def connect(self) -> None:
            asked.append((self.address, self.needs))

        def slots(self) -> int:
            return 12

    monkeypatch.setattr(phiscale.cluster, "RayBackend", Cluster)
    place = Place(workers=None, ray="head:6379", cpus_per_trial=2, gpus_per_trial=0.5)
    with place.open() as (backend, at_a_time):
        assert isinstance(backend, Cluster)
        assert at_a_time == 12
    assert asked == [("head:6379", {"CPU": 2.0, "GPU": 0.5})]
    assert place.scratch(tmp_path) is None  # the run folder is on one machine only


def test_on_a_gpu_one_worker_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_workers() == 1


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stop, stoppable():
        raise KeyboardInterrupt
    assert stop.value.exit_code == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_forecast(7200, 1)
    print_forecast(7200, 8, width=13)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("time     about ")
    assert lines[0].endswith(" with 1 worker")
    assert lines[1].startswith("time         about ")
    assert lines[1].endswith(" with 8 workers")
    three = confidence_interval([0.91, 0.912, 0.914])
    assert re.fullmatch(r"91\.20 \[90\.\d\d, 91\.\d\d\]", format_interval(three))
    assert format_interval(confidence_interval([0.912])) == "91.20"
