"""A study of tiny made-up trainings in a process of its own. Arguments: folder, workers."""

from __future__ import annotations

import sys
from pathlib import Path

from made_up import SMALL, Hill, Slow

from phiscale.search.store import TrialStore
from phiscale.search.study import StudyPlan, plan_study, run_study
from phiscale.search.study_files import write_tables


def make_plan() -> StudyPlan:
    """Six networks at most: the baseline and one for each direction."""
    return plan_study(SMALL, tables=["table7"])


def main(folder: Path, workers: int) -> None:
    objective = Slow(Hill(SMALL), folder / "log", seconds=0.15)
    with TrialStore(folder / "trials.db") as store:
        (folder / "ready").touch()
        result = run_study(make_plan(), objective, store, seeds=(0, 1), epochs=2, workers=workers)
        write_tables(result, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
