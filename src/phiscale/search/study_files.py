"""What a study leaves behind as tables: every training, every arm, everything as JSON, the networks.

FOLDER/trainings.csv     one row for each network and seed
FOLDER/arms.csv          one row for each network of each comparison, with intervals and differences
FOLDER/study.json        the same for programs, with what was asked for and what is missing
FOLDER/networks/*.json   each network; `phiscale fit --model` takes it
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import Scaling
from phiscale.search.arms import Arm
from phiscale.search.statistics import Interval
from phiscale.search.study import Analysis, Measured, Part, StudyPlan, StudyResult, missing_arms
from phiscale.search.tables import to_csv, write_texts
from phiscale.spec import NetworkSpec

__all__ = ["arm_rows", "part_rows", "plan_to_dict", "result_to_dict", "training_rows", "write_tables"]


def write_tables(result: StudyResult, folder: Path) -> None:
    """Write the tables and networks, each file whole or not at all.

    Args:
        result: The study.
        folder: Where to; it must exist.

    Raises:
        TrainingError: A file cannot be written.
    """
    contents = {
        "trainings.csv": to_csv(training_rows(result)),
        "arms.csv": to_csv(arm_rows(result)),
        "study.json": json.dumps(result_to_dict(result), indent=2) + "\n",
        **{f"networks/{name}.json": spec.to_json() + "\n" for name, spec in _file_names(result).items()},
    }
    write_texts(contents, folder)


def _file_names(result: StudyResult) -> dict[str, NetworkSpec]:
    """A file name for each network: its own name as far as a file can have it, with a number if need be."""
    names: dict[str, NetworkSpec] = {}
    for spec in result.plan.networks:
        stem = name = re.sub(r"[^\w.-]+", "_", spec.name)
        number = 1
        while name in names:
            number += 1
            name = f"{stem}_{number}"
        names[name] = spec
    return names


def training_rows(result: StudyResult) -> list[dict[str, Any]]:
    """One row for each training, network by network."""
    return [
        {
            "network": spec.name,
            **_cost(spec),
            "seed": seed,
            "epochs": score.epochs,
            "top1": score.top1,
            "train_seconds": round(score.train_seconds, 3),
        }
        for spec in result.plan.networks
        for seed, score in zip(result.seeds, result.of(spec).scores, strict=True)
    ]


def arm_rows(result: StudyResult) -> list[dict[str, Any]]:
    """One row for each network of each comparison, the baseline first.

    A network that stands in several comparisons has a row in each.
    """
    return [row for part in result.plan.parts for row in part_rows(result, part)]


def part_rows(result: StudyResult, part: Part) -> list[dict[str, Any]]:
    """The rows of one comparison."""
    comparison, analysis = part.comparison, result.analyse(part.comparison)
    first = _row(part, None, result.of(comparison.baseline), analysis)
    return [first, *(_row(part, arm, result.of(arm.spec), analysis) for arm in comparison.arms)]


def _row(part: Part, arm: Arm | None, measured: Measured, analysis: Analysis) -> dict[str, Any]:
    """An arm, or the baseline."""
    name = "baseline" if arm is None else arm.name
    top1, against = measured.top1, analysis.against.get(name)
    return {
        "comparison": part.title,
        "kind": part.kind,
        "arm": name,
        "network": measured.spec.name,
        **asdict(Scaling() if arm is None else arm.scaling),
        "second_factor": "" if arm is None or arm.fine is None else f"{arm.fine} × {arm.fine_factor:g}",
        **_cost(measured.spec),
        "seeds": top1.count,
        "top1": top1.mean,
        "top1_low": top1.low,
        "top1_high": top1.high,
        "less_compound": None if against is None else against.mean,
        "less_compound_low": None if against is None else against.low,
        "less_compound_high": None if against is None else against.high,
        "detectable": analysis.detectable,
        "epoch_seconds": round(measured.epoch_seconds, 4),
        "latency_ms": None if measured.latency_ms is None else round(measured.latency_ms, 4),
    }


def _cost(spec: NetworkSpec) -> dict[str, Any]:
    cost = complexity(spec)
    return {
        "layers": spec.num_blocks,
        "image_height": spec.image_size[0],
        "image_width": spec.image_size[1],
        "params": cost.params,
        "macs": cost.macs,
        "activations": cost.activations,
    }


def plan_to_dict(plan: StudyPlan) -> dict[str, Any]:
    """A plan as plain values, ready for JSON."""
    return {
        "baseline": {"name": plan.baseline.name, **_cost(plan.baseline)},
        "tables": list(plan.tables),
        "rule": asdict(plan.rule),
        "networks": len(plan.networks),
        "comparisons": [_part(part) for part in plan.parts],
        "missing": missing_arms(plan),
    }


def _part(part: Part) -> dict[str, Any]:
    comparison = part.comparison
    return {
        "title": part.title,
        "kind": part.kind,
        "growth_wanted": part.growth,
        "growth": part.counted_growth,
        "macs_spread": comparison.spread,
        "arms": [
            {
                "arm": arm.name,
                "network": arm.spec.name,
                **asdict(arm.scaling),
                "second_factor": arm.fine,
                **_cost(arm.spec),
            }
            for arm in comparison.arms
        ],
    }


def result_to_dict(result: StudyResult) -> dict[str, Any]:
    """A study as plain values, ready for JSON."""
    return {
        "plan": plan_to_dict(result.plan),
        "seeds": list(result.seeds),
        "epochs": result.epochs,
        "analyses": [
            {"comparison": part.title, **_analysis(result.analyse(part.comparison))}
            for part in result.plan.parts
        ],
        "arms": arm_rows(result),
    }


def _analysis(analysis: Analysis) -> dict[str, Any]:
    def plain(interval: Interval) -> dict[str, Any]:
        return interval.to_dict()

    return {
        "seed_std": None if analysis.spread is None else analysis.spread.std,
        "degrees": None if analysis.spread is None else analysis.spread.degrees,
        "detectable": analysis.detectable,
        "less_compound": {name: plain(one) for name, one in analysis.against.items()},
    }
