from __future__ import annotations

import random

import pytest

from phiscale.errors import SpecError
from phiscale.search.halving import expected_survivors, rung_epochs, survivors


@pytest.mark.parametrize(
    ("epochs", "reduction", "rungs"),
    [
        (30, 3, (3, 10, 30)),
        (27, 3, (3, 9, 27)),
        (16, 2, (4, 8, 16)),
        (3, 3, (3,)),
        (100, 3, (4, 11, 33, 100)),
    ],
)
def test_rungs(epochs: int, reduction: int, rungs: tuple[int, ...]) -> None:
    assert rung_epochs(epochs, reduction=reduction) == rungs


def test_rungs_need_sensible_numbers() -> None:
    with pytest.raises(SpecError, match="reduction at least 2"):
        rung_epochs(30, reduction=1)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12, 40])
@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_the_best_go_on_whatever_their_order(count: int, reduction: int) -> None:
    values = [index / count for index in range(count)]
    random.Random(count).shuffle(values)
    kept = survivors(dict(enumerate(values)), reduction=reduction)
    assert len(kept) == expected_survivors(count, reduction=reduction)
    assert count / reduction <= len(kept) + 1e-9 <= count / reduction + 1
    assert sorted(values[key] for key in kept) == sorted(values)[-len(kept) :]
    assert kept == sorted(kept)


def test_equals_go_on_together() -> None:
    assert survivors({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.1}) == ["a", "b", "c"]
