from __future__ import annotations

import pytest

from phiscale.families import get_spec
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES
from phiscale.scaling.ladder import PHI_TOLERANCE, Ladder

B0 = get_spec("efficientnet_b0")


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("phi", [-0.5, 0.0, 1.3])
def test_neighbours_are_next_to_each_other(name: str, phi: float) -> None:
    ladder = Ladder(B0, RULES[name])
    here, above, below = ladder.network(phi), ladder.above(phi), ladder.below(phi)
    assert below < phi < above
    smaller, larger = ladder.network(below), ladder.network(above)
    assert len({smaller, here, larger}) == 3
    assert complexity(smaller).inference_bytes < complexity(here).inference_bytes
    assert complexity(here).inference_bytes < complexity(larger).inference_bytes
    # A tolerance towards φ, it is the network of φ again: nothing lies between.
    assert ladder.network(above - 2 * PHI_TOLERANCE) == here
    assert ladder.network(below + 2 * PHI_TOLERANCE) == here


@pytest.mark.parametrize("side", [225, 300, 601])
def test_a_split_is_where_the_networks_end_that_fit(side: int) -> None:
    ladder = Ladder(B0, RULES["paper"])
    low, high = ladder.split(lambda spec: spec.image_size[0] < side)
    assert high - low <= PHI_TOLERANCE
    assert ladder.network(low).image_size == (side - 1, side - 1)
    assert ladder.network(high).image_size == (side, side)


def test_a_split_ends_before_the_absurd() -> None:
    ladder = Ladder(B0, RULES["resolution"])
    low, high = ladder.split(lambda _: True)
    assert not ladder.is_absurd(ladder.network(low))
    assert ladder.is_absurd(ladder.network(high))


def test_the_lowest_network_still_has_a_pixel_left() -> None:
    ladder = Ladder(B0, RULES["paper"])
    assert ladder.network(ladder.lowest_phi()).image_size == (32, 32)
