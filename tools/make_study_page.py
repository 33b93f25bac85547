"""Write docs/fashion-study.md from the folders of a coefficient search and of a study, figures included.

    python tools/make_study_page.py COEFFICIENTS STUDY --commands COMMANDS.txt

Run it on the machine that trained: the page names it. No figure on the page is typed in.
"""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from phiscale.deploy.machine import this_machine

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "fashion-study.md"
IMAGES = ROOT / "docs" / "images"
PACKAGES = ("torch", "lightning", "optuna")
SHOWN = 12  # networks of the ranking
FIGURES = {
    "figure3": "One dimension swept, as in the paper's Figure 3",
    "figure8": "One dimension against all three, as in the paper's Figure 8",
}

Row = Mapping[str, str]

INTRODUCTION = """# A study on Fashion-MNIST

The paper's method on 28-pixel images: the search for α, β and γ, then one dimension against all three at
equal multiply-adds. `python tools/make_study_page.py` has made this page from what the commands below left
behind; what it says of the paper's claim stands in [Results](results.md).

```text
{commands}
```

| | |
|---|---|
{facts}
"""

COEFFICIENTS = """## α, β and γ

{points} points of the grid and the paper's rule came to {networks} networks of about {growth:g} times the
baseline's multiply-adds. {rungs} Top-1 is on the validation images, of the last rung that a network reached,
with the 95 % interval over its seeds.

{table}

**The search found α = {alpha:g}, β = {beta:g}, γ = {gamma:g}.** {confirmed}

![Top-1 of the first rung over the grid](images/study-ternary.png)
"""

COMPARISON = """### {title}

{table}

{detectable}
"""


def read(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first are numbers."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(header) - 1) + "|", *lines[1:]])


def percent(value: str) -> str:
    """0.9123 as 91.23."""
    return f"{100 * float(value):.2f}"


def interval(low: str, high: str) -> str:
    """Both ends in per cent; a dash where there are none."""
    return f"{percent(low)} to {percent(high)}" if low and high else "–"


def millions(value: str) -> str:
    """Multiply-adds in millions."""
    return f"{float(value) / 1e6:.2f}"


def effort(folder: Path) -> str:
    """How many trainings a folder has recorded, how long they took, and from when to when."""
    with sqlite3.connect(folder / "trials.db") as database:
        first, last, count = database.execute(
            "select min(datetime_start), max(datetime_complete), count(*) from trials "
            "where state = 'COMPLETE'"
        ).fetchone()
        scores = database.execute("select value_json from trial_user_attributes where key = 'score'")
        seconds = sum(_score(text)["train_seconds"] for (text,) in scores)
    wall = (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
    return (
        f"{count} trainings, {wall / 60:.0f} minutes from the first to the last, "
        f"{seconds / 60:.0f} minutes of training"
    )


def _score(text: str) -> dict[str, Any]:
    found = json.loads(text)
    decoded: dict[str, Any] = json.loads(found) if isinstance(found, str) else found
    return decoded


def coefficients(folder: Path) -> str:
    """The section on the search for α, β and γ."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    plan, against = result["plan"], result["against_paper"]
    ranking = read(folder / "ranking.csv")
    shown = [row for row in ranking if int(row["rank"]) <= SHOWN or row["paper"] == "True"]
    rows = [
        [
            f"{float(row['alpha']):g}, {float(row['beta']):g}, {float(row['gamma']):g}" + _mark(row),
            f"{float(row['macs_growth']):.2f}",
            row["epochs"],
            percent(row["top1"]),
            interval(row["top1_low"], row["top1_high"]),
            percent(row["confirmed_top1"]) if row["confirmed_top1"] else "",
        ]
        for row in shown
    ]
    header = ("α, β, γ", "growth", "epochs", "top-1, %", "95 %", "further seeds, %")
    rungs = " ".join(
        f"{'Confirmation' if rung['confirms'] else f'Rung {number}'}: "
        f"{rung['trainings']} trainings of {rung['epochs']} epochs."
        for number, rung in enumerate(plan["rungs"], start=1)
    )
    confirmed = ""
    if against is not None:
        low, high = 100 * against["low"], 100 * against["high"]
        confirmed = (
            f"With {against['count']} further seeds it is {100 * against['mean']:+.2f} points from the "
            f"paper's rule (95 %: {low:+.2f} to {high:+.2f})."
        )
    shutil.copy(folder / "ternary.png", IMAGES / "study-ternary.png")
    return COEFFICIENTS.format(
        points=plan["grid_points"],
        networks=len(plan["candidates"]),
        growth=plan["growth"],
        rungs=rungs,
        table=markdown(header, rows),
        confirmed=confirmed,
        **result["rule"],
    )


def _mark(row: Row) -> str:
    """What is special about a candidate."""
    marks = {"winner": "the winner", "paper": "the paper's"}
    found = [text for name, text in marks.items() if row[name] == "True"]
    return f" ({', '.join(found)})" if found else ""


def comparisons(folder: Path) -> Iterable[str]:
    """A section for each comparison of the study, the dearest first, as Table 7 is."""
    by_title: dict[str, list[Row]] = {}
    for row in read(folder / "arms.csv"):
        by_title.setdefault(row["comparison"], []).append(row)
    for title, arms in reversed(by_title.items()):
        rows = [
            [
                arm["arm"],
                f"{float(arm['depth']):.3g}, {float(arm['width']):.3g}, {float(arm['resolution']):.3g}",
                millions(arm["macs"]),
                percent(arm["top1"]),
                interval(arm["top1_low"], arm["top1_high"]),
                f"{100 * float(arm['less_compound']):+.2f}" if arm["less_compound"] else "",
                interval(arm["less_compound_low"], arm["less_compound_high"]) if arm["less_compound"] else "",
                f"{float(arm['epoch_seconds']):.1f}",
                f"{float(arm['latency_ms']):.2f}" if arm["latency_ms"] else "",
            ]
            for arm in arms
        ]
        header = (
            "scaled",
            "d, w, r",
            "M multiply-adds",
            "top-1, %",
            "95 %",
            "less compound",
            "95 % of that",
            "s / epoch",
            "inference, ms",
        )
        smallest = next((arm["detectable"] for arm in arms if arm["detectable"]), "")
        told = (
            f"{arms[0]['seeds']} seeds would have shown a difference of {percent(smallest)} points between "
            "two networks with a probability of 80 %."
            if smallest
            else ""
        )
        yield COMPARISON.format(title=title, table=markdown(header, rows), detectable=told)


def figures(folder: Path) -> Iterable[str]:
    """The figures that the study drew, copied to the docs."""
    for name, caption in FIGURES.items():
        drawn = folder / "figures" / f"{name}.png"
        if drawn.is_file():
            shutil.copy(drawn, IMAGES / f"study-{name}.png")
            yield f"![{caption}](images/study-{name}.png)\n"


def main(
    search: Annotated[Path, typer.Argument(help="Folder of `phiscale search coefficients`.")],
    study: Annotated[Path, typer.Argument(help="Folder of `phiscale study`.")],
    commands: Annotated[Path, typer.Option(help="Text file with the commands that were run.")],
) -> None:
    """Write the page."""
    baseline = json.loads((study / "study.json").read_text(encoding="utf-8"))["plan"]["baseline"]
    facts = {
        "machine": str(this_machine()),
        "versions": ", ".join(f"{name} {version(name).partition('+')[0]}" for name in PACKAGES),
        "baseline": f"{millions(baseline['macs'])} million multiply-adds, {baseline['params']:,} parameters, "
        f"{baseline['image_height']}×{baseline['image_width']} px",
        "coefficient search": effort(search),
        "study": effort(study),
    }
    parts = [
        INTRODUCTION.format(
            commands=commands.read_text(encoding="utf-8").strip(),
            facts="\n".join(f"| {name} | {fact} |" for name, fact in facts.items()),
        ),
        coefficients(search),
        "## One dimension against all three\n",
        *comparisons(study),
        *figures(study),
    ]
    PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
