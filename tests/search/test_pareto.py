from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from phiscale.search.pareto import CloudPoint, dominates, draw_pareto, pareto_front

# Few different values, so that equal ones are met.
places = st.tuples(st.integers(1, 6).map(float), st.integers(0, 6).map(lambda n: n / 6))


@given(st.lists(places, max_size=30))
def test_the_front_is_what_nothing_dominates(found: list[tuple[float, float]]) -> None:
    front = pareto_front(found, place=lambda item: item)
    brute = [item for item in found if not any(dominates(other, item) for other in found)]
    assert sorted(front) == sorted(brute)
    assert front == sorted(front)


@given(places, places)
def test_of_two_at_most_one_dominates(first: tuple[float, float], second: tuple[float, float]) -> None:
    assert not (dominates(first, second) and dominates(second, first))
    assert not dominates(first, first)


def test_items_are_kept_as_they_are() -> None:
    nets = {"small": (1.0, 0.5), "bad": (3.0, 0.4), "large": (2.0, 0.7)}
    assert pareto_front(list(nets), place=lambda name: nets[name]) == ["small", "large"]


@pytest.mark.parametrize("with_template", [True, False])
def test_the_picture_has_both_clouds(tmp_path: Path, with_template: bool) -> None:
    proxies = [CloudPoint(cost=1e6 * n, top1=0.5 + 0.04 * n) for n in range(1, 9)]
    best = CloudPoint(cost=4e6, top1=0.91, low=0.90, high=0.92)
    template = CloudPoint(cost=4e6, top1=0.88)
    figure = Figure()
    draw_pareto(
        figure,
        proxies,
        [best, template],
        best=best,
        reference=template if with_template else None,
        target=4e6,
        cost_label="multiply-adds",
    )
    left, right = figure.axes
    assert left.get_title() == "short trainings (8)"
    assert right.get_title() == "full trainings (2)"
    legend = right.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == (["template", "chosen"] if with_template else ["chosen"])
    figure.savefig(tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as picture:
        assert len(picture.convert("L").getcolors() or []) > 2
