from __future__ import annotations

import pytest
from made_up_meter import roofline

from phiscale.deploy.cost_model import CostModel
from phiscale.families import get_spec
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import compound_scale
from phiscale.spec import NetworkSpec

B0 = get_spec("efficientnet_b0")
LADDER = [compound_scale(B0, phi=phi) for phi in (-2.0, -1.0, 0.0, 1.0, 2.0)]


def test_a_measured_network_is_predicted_as_measured() -> None:
    model = CostModel()
    for spec in LADDER:
        model.add(spec, roofline(spec))
    assert [model.predict(spec) for spec in LADDER] == pytest.approx([roofline(spec) for spec in LADDER])
    model.add(LADDER[2], 7.0)  # measured again
    assert model.predict(LADDER[2]) == pytest.approx(7.0)


def test_one_measurement_tells_how_fast_the_machine_is() -> None:
    once, twice = CostModel(), CostModel()
    once.add(B0, 5.0)
    twice.add(B0, 10.0)
    for spec in LADDER:
        assert twice.predict(spec) == pytest.approx(2 * once.predict(spec))


def test_networks_between_are_predicted_well() -> None:
    model = CostModel()
    for spec in (LADDER[0], LADDER[2], LADDER[4]):
        model.add(spec, roofline(spec))
    between = [compound_scale(B0, phi=phi) for phi in (-1.7, -1.0, -0.4, 0.3, 0.9, 1.6)]
    assert [model.predict(spec) for spec in between] == pytest.approx(
        [roofline(spec) for spec in between], rel=0.05
    )


@pytest.mark.parametrize(("what", "each_ms"), [("macs", 1e-8), ("activations", 1e-6)])
def test_more_measurements_learn_what_the_machine_is_like(what: str, each_ms: float) -> None:
    """A machine that only multiplies, and one that only moves numbers, are told apart."""

    def latency(spec: NetworkSpec) -> float:
        return each_ms * float(getattr(complexity(spec), what))

    model = CostModel()
    for spec in (*LADDER, get_spec("mobilenet_v2"), get_spec("resnet18"), get_spec("resnet50")):
        model.add(spec, latency(spec))
    wide = compound_scale(get_spec("resnet50"), phi=1.0)
    assert model.predict(wide) == pytest.approx(latency(wide), rel=0.35)


def test_a_batch_takes_longer_but_loads_the_weights_once() -> None:
    one, many = CostModel(), CostModel(batch_size=8)
    for spec in LADDER:
        assert one.predict(spec) < many.predict(spec) < 8 * one.predict(spec)


def test_without_a_measurement_larger_networks_take_longer() -> None:
    model = CostModel()
    times = [model.predict(spec) for spec in LADDER]
    assert times == sorted(times)
