"""What a coefficient search leaves behind: the rule, the ranked table, everything as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phiscale.search.coefficients import CoefficientPlan, CoefficientResult, Ranked
from phiscale.search.grid import Candidate
from phiscale.search.tables import to_csv, write_texts

__all__ = ["RANKING", "RESULT", "RULE", "plan_to_dict", "ranking_rows", "result_to_dict", "write_result"]

RULE, RANKING, RESULT = "rule.json", "ranking.csv", "result.json"


def write_result(result: CoefficientResult, folder: Path) -> None:
    """Write ``rule.json`` (for ``--rule``), ``ranking.csv`` and ``result.json``.

    Args:
        result: What the search came to.
        folder: Where to; it must exist.

    Raises:
        TrainingError: A file cannot be written.
    """
    rule = {**asdict(result.rule), "baseline": result.plan.baseline.name, "growth": result.plan.growth}
    contents = {
        RULE: json.dumps(rule, indent=2) + "\n",
        RANKING: to_csv(ranking_rows(result)),
        RESULT: json.dumps(result_to_dict(result), indent=2) + "\n",
    }
    write_texts(contents, folder)


def ranking_rows(result: CoefficientResult) -> list[dict[str, Any]]:
    """One row for each network that was trained, the best first."""
    return [
        _row(place, ranked, is_winner=ranked is result.winner)
        for place, ranked in enumerate(result.ranking, start=1)
    ]


def _row(place: int, ranked: Ranked, *, is_winner: bool) -> dict[str, Any]:
    confirmed = ranked.confirmed
    return {
        "rank": place,
        **_candidate(ranked.candidate),
        "winner": is_winner,
        "rung": ranked.rung,
        "epochs": ranked.epochs,
        "seeds": ranked.top1.count,
        "top1": ranked.top1.mean,
        "top1_low": ranked.top1.low,
        "top1_high": ranked.top1.high,
        "first_rung_top1": ranked.first_top1.mean,
        "confirmed_seeds": None if confirmed is None else confirmed.count,
        "confirmed_top1": None if confirmed is None else confirmed.mean,
        "confirmed_low": None if confirmed is None else confirmed.low,
        "confirmed_high": None if confirmed is None else confirmed.high,
    }


def result_to_dict(result: CoefficientResult) -> dict[str, Any]:
    """Everything as plain values, ready for JSON. Equal searches give equal values."""
    against = result.against_paper
    return {
        "rule": asdict(result.rule),
        "winner": result.winner.candidate.spec.to_dict(),
        "against_paper": None if against is None else against.to_dict(),
        "ranking": ranking_rows(result),
        "plan": plan_to_dict(result.plan),
    }


def plan_to_dict(plan: CoefficientPlan) -> dict[str, Any]:
    """A plan as plain values, ready for JSON."""
    return {
        "baseline": plan.baseline.to_dict(),
        "baseline_macs": plan.baseline_macs,
        "growth": plan.growth,
        "grid_points": plan.grid_points,
        "seeds": list(plan.seeds),
        "confirm_seeds": list(plan.confirm_seeds),
        "rungs": [
            {"trainings": trainings, "epochs": epochs, "confirms": number == len(plan.rungs)}
            for number, (trainings, epochs) in enumerate(plan.trainings())
        ],
        "candidates": [
            {**_candidate(candidate), "rules": [asdict(rule) for rule in candidate.rules]}
            for candidate in plan.first_rung
        ],
        "dropped": [_candidate(candidate) for candidate in plan.dropped],
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    spec = candidate.spec
    return {
        **asdict(candidate.rule),
        "paper": candidate.is_paper,
        "on_target": candidate.on_target,
        "macs": candidate.complexity.macs,
        "macs_growth": candidate.macs_growth,
        "params": candidate.complexity.params,
        "layers": spec.num_blocks,
        "height": spec.image_size[0],
        "width": spec.image_size[1],
    }
