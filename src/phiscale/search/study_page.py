"""A study as one HTML page that needs no other file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiscale.errors import require
from phiscale.search.statistics import Interval
from phiscale.search.study import COMPOUND, Analysis, Part, StudyResult, Table, missing_arms
from phiscale.search.study_figures import INK
from phiscale.search.study_files import part_rows

__all__ = ["render_page"]

TEMPLATE = Path(__file__).with_name("study_page.html.jinja")
HEADERS = (
    "arm", "d", "w", "r", "second", "layers", "image", "params, M", "mult-adds, M", "top-1, %",
    "less compound, points", "s / epoch", "infer, ms",
)  # fmt: skip
TITLES: Mapping[Table, str] = {
    "table7": "One dimension against all three (the paper’s Table 7)",
    "figure3": "One dimension swept (Figure 3)",
    "figure4": "Width swept at four depths and resolutions (Figure 4)",
    "figure8": "Four ways to scale, and dWr (Figure 8)",
    "table3": "Other families (Table 3)",
}
CAPTIONS: Mapping[Table, str] = {
    "table7": "Dots are means, lines their 95 % intervals, strokes single seeds.",
    "figure3": "Each point has its factor. At equal places on the horizontal axis, networks cost the same.",
    "figure4": "Each curve has a depth and a resolution; its points have the factor of the width.",
    "figure8": "All curves begin at the baseline. Lines are 95 % intervals.",
    "table3": "As above, each family from a baseline of its own.",
}
KINDS: Mapping[Table, str] = {
    "table7": "levels", "figure3": "levels", "figure8": "levels", "figure4": "widths", "table3": "families",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Table:
    caption: str
    rows: list[list[str]]


def render_page(
    result: StudyResult, figures: Mapping[Table, str], *, facts: Mapping[str, str], timing: str
) -> str:
    """Render a study.

    Args:
        result: The study.
        figures: SVG documents, drawn with `study_figures.STYLE`.
        facts: Name and value of what the reader must know: images, recipe, machine.
        timing: A sentence on how times were measured.

    Returns:
        The page.

    Raises:
        MissingDependencyError: Jinja2 or scipy is not installed.
    """
    jinja2 = require("jinja2", extra="search")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    plan, shown = result.plan, set[str]()
    sections = []
    for table in (table for table in plan.tables if table in figures):
        parts = plan.of_kind(KINDS[table])[-1 if table == "table7" else None :]
        tables = [_table(result, part) for part in parts if part.title not in shown]
        shown |= {part.title for part in parts}
        sections.append(
            {
                "title": TITLES[table],
                "caption": CAPTIONS[table],
                "figure": jinja2.utils.markupsafe.Markup(_inline(figures[table], table)),
                "tables": tables,
            }
        )
    return str(
        template.render(
            title=f"{plan.baseline.name}: one dimension against all three",
            facts=facts,
            seeds=len(result.seeds),
            verdicts=[_verdict(result, part) for part in plan.parts] if len(result.seeds) > 1 else [],
            sections=sections,
            headers=HEADERS,
            missing=missing_arms(plan),
            timing=timing,
        )
    )


def _inline(svg: str, name: str) -> str:
    """An SVG document as part of a page: no prolog, the page's ink, and ids that no other figure has."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = body.replace(INK, "currentColor")
    body = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", body)
    return body.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)


def _table(result: StudyResult, part: Part) -> _Table:
    return _Table(
        caption=f"{part.title} of the baseline’s multiply-adds",
        rows=[_cells(row) for row in part_rows(result, part)],
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    star = "*" if row["second_factor"] else ""
    latency = row["latency_ms"]
    return [
        f"{row['arm']}{star}",
        *(f"{row[name]:.4g}" for name in ("depth", "width", "resolution")),
        row["second_factor"],
        str(row["layers"]),
        f"{row['image_height']}×{row['image_width']}",
        f"{row['params'] / 1e6:.3g}",
        f"{row['macs'] / 1e6:.4g}",
        _with_ends(row, "top1", "{:.2f}"),
        "" if row["less_compound"] is None else _with_ends(row, "less_compound", "{:+.2f}"),
        f"{row['epoch_seconds']:.3g}",
        "" if latency is None else f"{latency:.3g}",
    ]


def _with_ends(row: Mapping[str, Any], name: str, form: str) -> str:
    mean, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    text = form.format(100 * mean)
    if low is None:
        return text
    return f"{text} [{form.format(100 * low)}, {form.format(100 * high)}]"


def _verdict(result: StudyResult, part: Part) -> dict[str, str]:
    analysis = result.analyse(part.comparison)
    spread, detectable = analysis.spread, analysis.detectable
    return {
        "title": part.title,
        "arms": str(len(part.comparison.arms)),
        "spread": f"{part.comparison.spread:.1%}",
        "detectable": "" if detectable is None else f"{100 * detectable:.2f}",
        "std": "" if spread is None else f"{100 * spread.std:.2f}",
        "verdict": _in_words(analysis, has_compound=part.comparison.arm(COMPOUND) is not None),
    }


def _in_words(analysis: Analysis, *, has_compound: bool) -> str:
    """Where the compound arm stands against the others, by their intervals."""
    if not has_compound:
        return ""

    def names(chosen: Mapping[str, Interval]) -> str:
        return ", ".join(chosen)

    # The intervals are of the other arm less the compound arm.
    worse = {n: one for n, one in analysis.against.items() if one.high is not None and one.high < 0}
    better = {n: one for n, one in analysis.against.items() if one.low is not None and one.low > 0}
    words = []
    if worse:
        words.append(f"better than {names(worse)}")
    if better:
        words.append(f"worse than {names(better)}")
    return "; ".join(words) or "not told apart from any"
