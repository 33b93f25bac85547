from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import SMALL
from made_up_study import Saturating
from matplotlib import rc_context
from matplotlib.figure import Figure

from phiscale.scaling.complexity import complexity
from phiscale.search.store import TrialStore
from phiscale.search.study import COMPOUND, StudyResult, Table, plan_study, run_study
from phiscale.search.study_figures import FIGURES, INK, SIZES, STYLE
from phiscale.search.study_page import HEADERS, render_page

SETTINGS: Any = dict(STYLE)
FACTS = {"images": "<b>made up</b> & few"}
TIMING = "Times are made up."


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    plan = plan_study(SMALL, families=["mobilenet_v1", "resnet50"], levels=[2.0, 4.0])
    with TrialStore(tmp_path_factory.mktemp("study") / "trials.db") as store:
        return run_study(plan, Saturating(SMALL), store, seeds=(0, 1, 2), epochs=10)


def draw(table: Table, result: StudyResult) -> Figure:
    with rc_context(SETTINGS):
        figure = Figure(figsize=SIZES[table], layout="constrained")
        FIGURES[table](figure, result)
        figure.canvas.draw()
    return figure


def as_svg(table: Table, result: StudyResult, path: Path) -> str:
    with rc_context(SETTINGS):
        draw(table, result).savefig(path, format="svg", metadata={"Date": None})
    return path.read_text(encoding="utf-8")


def curve(figure: Figure, axis: int, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in figure.axes[axis].get_lines() if line.get_label() == label]
    x, y = line.get_data()
    return list(zip(np.asarray(x, float).tolist(), np.asarray(y, float).tolist(), strict=True))


def test_figure8_goes_through_the_means(result: StudyResult) -> None:
    figure = draw("figure8", result)
    levels = result.plan.of_kind("levels")
    for name in ("depth", "width", "resolution", COMPOUND):
        arms = [arm for part in levels if (arm := part.comparison.arm(name))]
        specs = [SMALL, *(arm.spec for arm in arms)]
        wanted = [(complexity(spec).macs / 1e6, 100 * result.of(spec).top1.mean) for spec in specs]
        assert curve(figure, 0, name) == [pytest.approx(point) for point in wanted]


def test_figure3_has_a_panel_for_each_dimension_with_the_factors(result: StudyResult) -> None:
    figure = draw("figure3", result)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["width", "depth", "resolution"]
    for axis, name in zip(figure.axes, ("width", "depth", "resolution"), strict=True):
        arms = [arm for part in result.plan.of_kind("levels") if (arm := part.comparison.arm(name))]
        shown = {text.get_text().rstrip("*") for text in axis.texts}
        factors = [1.0, *(getattr(arm.scaling, name) for arm in arms)]
        assert shown == {f"{name[0]}={factor:.3g}" for factor in factors}


def test_figure4_has_a_curve_for_each_depth_and_resolution(result: StudyResult) -> None:
    figure = draw("figure4", result)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "d=1, r=1",
        "d=1, r=1.3",
        "d=2, r=1",
        "d=2, r=1.3",
    ]


def test_table3_has_a_panel_for_each_family(result: StudyResult) -> None:
    figure = draw("table3", result)
    titles = [part.title for part in result.plan.of_kind("families")]
    assert [axis.get_title(loc="left") for axis in figure.axes] == titles
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["baseline", *(arm.name for arm in result.plan.of_kind("families")[0].comparison.arms)]


def test_equal_studies_give_equal_pictures(result: StudyResult, tmp_path: Path) -> None:
    first, second = (as_svg("table7", result, tmp_path / f"{name}.svg") for name in "ab")
    assert first == second


def test_one_seed_can_be_drawn(result: StudyResult) -> None:
    single = replace(
        result,
        seeds=(0,),
        measured={
            key: replace(measured, scores=measured.scores[:1]) for key, measured in result.measured.items()
        },
    )
    for table in result.plan.tables:
        draw(table, single)


# ------------------------------------------------------------------------------------------- page


class Outline(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value:
                self.links.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.pop()


@pytest.fixture(scope="module")
def page(result: StudyResult, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("figures")
    figures = {table: as_svg(table, result, folder / f"{table}.svg") for table in result.plan.tables}
    timed = result.with_latencies(dict.fromkeys(result.measured, 12.5))
    return render_page(timed, figures, facts=FACTS, timing=TIMING)


def test_a_page_is_whole_and_needs_no_other_file(page: str, result: StudyResult) -> None:
    outline = Outline(page)
    assert outline.open == []
    assert outline.counts["svg"] == len(result.plan.tables)
    assert all(link.startswith("#") for link in outline.links)
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link[1:] for link in outline.links} <= set(outline.ids)
    assert not re.search(r"<script|@import|https?://(?!www\.w3\.org)", page)


def test_figures_take_the_pages_ink(page: str) -> None:
    assert page.count(INK) == 1  # where the page itself says what its ink is
    assert "fill: currentColor" in page
    ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6].replace("xlink:href", "href"))


def test_a_page_shows_each_comparison_once(page: str, result: StudyResult) -> None:
    for part in result.plan.parts:
        assert page.count(f"<caption>{part.title} of the") == 1
    rows = sum(1 + len(part.comparison.arms) for part in result.plan.parts)
    assert page.count("<tr") == rows + len(result.plan.parts) + len(result.plan.parts) + 1
    assert page.count(f"<th>{HEADERS[0]}</th>") == len(result.plan.parts)
    assert page.count('class="compound"') == sum(
        part.comparison.arm(COMPOUND) is not None for part in result.plan.parts
    )


def test_a_page_says_what_the_seeds_could_have_shown(page: str, result: StudyResult) -> None:
    for part in result.plan.parts:
        detectable = result.analyse(part.comparison).detectable
        assert detectable is not None
        assert f"<td>{100 * detectable:.2f}</td>" in page


def test_text_of_the_user_is_no_markup(page: str) -> None:
    assert "&lt;b&gt;made up&lt;/b&gt; &amp; few" in page
    assert "<b>" not in page


def test_with_one_seed_a_page_says_that_chance_is_unknown(result: StudyResult) -> None:
    single = replace(
        result,
        seeds=(0,),
        measured={key: replace(one, scores=one.scores[:1]) for key, one in result.measured.items()},
    )
    page = render_page(single, {}, facts={}, timing=TIMING)
    assert "With one seed nothing can be said of chance" in page
    assert "would be told apart" not in page
