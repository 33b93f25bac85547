"""A search of twelve tiny trainings in a process of its own.

Arguments: folder; number of workers, or address of a Ray cluster; seconds of a training.
"""

from __future__ import annotations

import sys
from pathlib import Path

from made_up import SMALL, Hill, Slow

from phiscale.cluster import RayBackend
from phiscale.scaling.compound import CompoundRule, compound_scale
from phiscale.search.coefficients import CoefficientPlan, plan_coefficients, search_coefficients
from phiscale.search.coefficients_report import write_result
from phiscale.search.runner import local_backend
from phiscale.search.store import TrialStore

BEST = compound_scale(SMALL, phi=1.0, rule=CompoundRule(alpha=1.4, beta=1.1, gamma=1.1))


def make_plan() -> CoefficientPlan:
    """Seven networks once, three of them twice as long, and two further trainings."""
    return plan_coefficients(
        SMALL,
        epochs=6,
        step=0.1,
        tolerance=0.05,
        cost_tolerance=0.15,
        seeds=[0],
        confirm_seeds=1,
        min_epochs=2,
    )


def main(folder: Path, where: str, seconds: float) -> None:
    objective = Slow(Hill(BEST), folder / "log", seconds=seconds)
    backend = local_backend(int(where)) if where.isdecimal() else RayBackend(where)
    with TrialStore(folder / "trials.db") as store, backend as run:
        (folder / "ready").touch()
        write_result(search_coefficients(make_plan(), objective, store, backend=run), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
