from __future__ import annotations

import logging
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import SMALL

from phiscale.errors import MissingDependencyError, TrainingError
from phiscale.families import get_spec
from phiscale.search.objective import Score, Trial
from phiscale.search.store import TrialStore

TRIAL = Trial(spec=SMALL, seed=3, epochs=2)
SCORE = Score(top1=0.1 + 0.2, epochs=2, train_seconds=1 / 3, latency_ms=None)


def test_what_decides_a_result_decides_the_key() -> None:
    assert TRIAL.key == replace(TRIAL, spec=replace(SMALL, name="another")).key
    others = [
        replace(TRIAL, seed=4),
        replace(TRIAL, epochs=None),
        replace(TRIAL, spec=replace(SMALL, image_size=(28, 32))),
    ]
    assert len({TRIAL.key, *(other.key for other in others)}) == 4


def test_keys_of_networks_with_all_skips_are_those_of_before_there_was_a_choice() -> None:
    key = "ef469fe0ff2f179f33465df459f10dd6c9c665403fd142e1b848c4f8941d5862"
    assert Trial(spec=get_spec("efficientnet_b0"), seed=0, epochs=3).key == key


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "trials.db"
    with TrialStore(path) as store:
        assert store.get(TRIAL) is None
        store.put(TRIAL, SCORE)
    with TrialStore(path) as store:
        assert store.get(TRIAL) == SCORE
        assert store.get(replace(TRIAL, seed=4)) is None
        assert len(store) == 1


def test_the_first_result_of_a_trial_counts(tmp_path: Path) -> None:
    with TrialStore(tmp_path / "trials.db") as one, TrialStore(tmp_path / "trials.db") as other:
        one.put(TRIAL, SCORE)
        other.put(TRIAL, replace(SCORE, top1=0.9))
        assert one.get(TRIAL) == other.get(TRIAL) == SCORE
        assert len(one) == len(other) == 1


def test_optuna_can_read_the_study(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), TrialStore(tmp_path / "trials.db", study="mine") as store:
        store.put(TRIAL, SCORE)
        best = store.study.best_trial
    assert best.value == SCORE.top1
    assert best.user_attrs["seed"] == 3
    assert best.user_attrs["spec"]["stages"][1]["out_channels"] == 24
    assert not caplog.records  # Optuna tells of every study otherwise


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    settings = {"recipe": {"epochs": 3, "crop": (0.3, 1.0)}, "classes": 10}
    TrialStore(path, settings=settings).close()
    TrialStore(path, settings=settings).close()
    with pytest.raises(TrainingError, match=r"classes was 10, is 9.*another folder"):
        TrialStore(path, settings={**settings, "classes": 9})
    TrialStore(path, study="second", settings={"classes": 9}).close()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    path.write_text("not a database, but long enough to look like one\n" * 100)
    with pytest.raises(TrainingError, match=r"cannot use sqlite.*not a database"):
        TrialStore(path)


def test_a_database_that_cannot_be_reached() -> None:
    with pytest.raises(TrainingError) as caught:
        TrialStore("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_driver_that_is_not_installed() -> None:
    with pytest.raises(MissingDependencyError, match=r"driver .*is not installed"):
        TrialStore("oracle+cx_oracle://me@nowhere/none")


def test_an_address_that_is_none() -> None:
    with pytest.raises(TrainingError, match="cannot use"):
        TrialStore("no-such-database://here")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot write to"):
        TrialStore(tmp_path / "file" / "trials.db")


def test_a_result_is_whole_or_absent(tmp_path: Path) -> None:
    """A database whose last transaction was cut off is what a kill leaves behind."""
    path = tmp_path / "trials.db"
    with TrialStore(path) as store:
        store.put(TRIAL, SCORE)
    with sqlite3.connect(path) as connection:
        rows = connection.execute("select trial_id, state from trials").fetchall()
        keys = connection.execute(
            "select count(*) from trial_user_attributes where key in ('key', 'score')"
        ).fetchone()
    connection.close()
    assert rows == [(1, "COMPLETE")]
    assert keys == (2,)
