"""Write docs/training_benchmarks.md from what `make bench-training` measured, and put it into the docs' menu.

python tools/make_training_page.py [RESULTS.json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "training.json"
PAGE = ROOT / "docs" / "training_benchmarks.md"
MENU = ROOT / "mkdocs.yml"
RESULTS_ENTRY = "  - Results: results.md\n"
ENTRY = "  - Benchmarks of training: training_benchmarks.md\n"

INTRODUCTION = """# Benchmarks of training

Steps of SGD with EfficientNet-B0, measured by `make bench-training`, which also writes this page. Each
contender has a process of its own in every round, and they take turns; rates are of the median of the rounds'
medians. Memory is the peak of the process, {memory}. "As it comes" is this project
with `tune: auto`: the memory of the measurement counts, its time does not.
"""


def page(content: Mapping[str, Any]) -> str:
    """The page as text."""
    measured = content["measured"]
    machine = measured["machine"]
    memory = "on the GPU" if measured["gpu"] else "libraries included"
    parts = [INTRODUCTION.format(memory=memory)]
    facts = {
        "date": measured["date"],
        "processor": f"{machine['processor']}, {machine['cores']} cores",
        "GPU": measured["gpu"] or "none",
        "threads": machine["threads"],
        "rounds": measured["rounds"],
        "load before the run": machine["load_before"],
        "versions": ", ".join(
            f"{name} {measured['versions'][name]}" for name in ("torch", "timm", "torchvision", "phiscale")
        ),
    }
    parts.append(_table(("", ""), facts.items()))
    bars = [(bar["what"], bar["wanted"], bar["found"], bar["verdict"]) for bar in content["bars"]]
    parts.append("## What must hold\n\n" + _table(("what", "wanted", "found", ""), bars))
    parts += [_contenders(rows) for rows in content["tables"] if rows]
    return "\n".join(parts)


def _contenders(rows: Sequence[Mapping[str, Any]]) -> str:
    first = rows[0]
    table = _table(
        ("", "images/s", f"× {first['name']}", "MiB"),
        [
            (
                row["name"],
                f"{row['images_per_second']:.1f}",
                f"{row['images_per_second'] / first['images_per_second']:.2f}",
                f"{row['peak_bytes'] / 2**20:.0f}",
            )
            for row in rows
        ],
    )
    chosen = sorted({text for row in rows for text in row["chosen"]})
    said = "".join(f"\nChosen: {text}.\n" for text in chosen)
    return f"## Batch {first['batch']} at {first['side']} px\n\n{table}{said}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def main(results: str | None = None) -> None:
    """Write the page."""
    content = json.loads(Path(results or RESULTS).read_text(encoding="utf-8"))
    PAGE.write_text(page(content), encoding="utf-8")
    menu = MENU.read_text(encoding="utf-8")
    if ENTRY not in menu:
        MENU.write_text(menu.replace(RESULTS_ENTRY, RESULTS_ENTRY + ENTRY), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
