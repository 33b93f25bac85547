"""What a search for a baseline leaves behind: the network, every candidate, everything as JSON, a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiscale.scaling.complexity import complexity
from phiscale.search.baseline import BaselineSearch, Finalist
from phiscale.search.objective import Score
from phiscale.search.pareto import CloudPoint, draw_pareto
from phiscale.search.proposals import Candidate
from phiscale.search.tables import to_csv, write_texts
from phiscale.spec import NetworkSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BASELINE", "CANDIDATES", "RESULT", "draw_search", "found_spec", "search_to_dict", "write_search"]

BASELINE, CANDIDATES, RESULT = "baseline.json", "candidates.csv", "search.json"
COST_LABELS = {"macs": "multiply-adds", "latency_ms": "latency [ms]"}


def found_spec(search: BaselineSearch, name: str = "searched_baseline") -> NetworkSpec:
    """The network that was found, under a name of its own."""
    return replace(search.best.spec, name=name)


def write_search(search: BaselineSearch, folder: Path, *, name: str = "searched_baseline") -> None:
    """Write ``baseline.json`` (for ``--model`` and ``--baseline``), ``candidates.csv`` and ``search.json``.

    Args:
        search: What was found.
        folder: Where to; it must exist.
        name: What to call the network.

    Raises:
        TrainingError: A file cannot be written.
    """
    contents = {
        CANDIDATES: to_csv(list(_rows(search))),
        RESULT: json.dumps(search_to_dict(search), indent=2) + "\n",
        BASELINE: found_spec(search, name).to_json() + "\n",
    }
    write_texts(contents, folder)


def search_to_dict(search: BaselineSearch) -> dict[str, Any]:
    """The search as plain values, ready for JSON."""
    goal = search.goal
    return {
        "goal": {
            "limits": goal.limits.limits(),
            "cost": goal.cost,
            "target": goal.target,
            "exponent": goal.exponent,
        },
        "effort": dataclasses.asdict(search.effort),
        "space": {"networks": search.space.size, "template": search.space.template.name},
        "proxies": len(search.proxies),
        "rejected": search.rejected,
        "repeated": search.repeated,
        "dominates_template": search.dominates_template,
        "best": _finalist(search, search.best),
        "finalists": [_finalist(search, one) for one in search.finalists],
    }


def draw_search(figure: Figure, search: BaselineSearch) -> None:
    """Draw cost against accuracy, of the proxies and of the finalists.

    Args:
        figure: An empty figure.
        search: What was found.
    """
    draw_pareto(
        figure,
        [CloudPoint(cost=proxy.cost, top1=proxy.score.top1) for proxy in search.proxies],
        [_point(one) for one in search.finalists],
        best=_point(search.best),
        reference=None if search.template is None else _point(search.template),
        target=search.goal.target,
        cost_label=COST_LABELS[search.goal.cost],
    )


def _point(one: Finalist) -> CloudPoint:
    return CloudPoint(cost=one.cost, top1=one.top1.mean, low=one.top1.low, high=one.top1.high)


def _finalist(search: BaselineSearch, one: Finalist) -> dict[str, Any]:
    cost = complexity(one.spec)
    return {
        "network": one.spec.name,
        "is_template": one.is_template,
        "on_front": one in search.front,
        "top1": one.top1.to_dict(),
        "reward": one.reward,
        "macs": cost.macs,
        "params": cost.params,
        "costs": dict(one.costs),
        "scores": [score.to_dict() for score in one.scores],
        "spec": one.spec.to_dict(),
    }


def _rows(search: BaselineSearch) -> Iterator[dict[str, Any]]:
    goal, effort = search.goal, search.effort
    for proxy in search.proxies:
        seed = effort.proxy(proxy.candidate.spec).seed
        yield _row(proxy.candidate, "proxy", seed, proxy.score, proxy.reward)
    for one in search.finalists:
        candidate = Candidate(number=0, spec=one.spec, costs=one.costs)
        for seed, score in zip(effort.final_seeds, one.scores, strict=True):
            yield _row(candidate, "full", seed, score, goal.reward(score.top1, one.cost))


def _row(candidate: Candidate, training: str, seed: int, score: Score, reward: float) -> dict[str, Any]:
    cost = complexity(candidate.spec)
    return {
        "network": candidate.spec.name,
        "training": training,
        "seed": seed,
        "top1": score.top1,
        "reward": reward,
        "epochs": score.epochs,
        "train_seconds": round(score.train_seconds, 3),
        "macs": cost.macs,
        "params": cost.params,
        "latency_ms": candidate.costs.get("latency_ms", ""),
        "spec": json.dumps(candidate.spec.to_dict()),
    }
