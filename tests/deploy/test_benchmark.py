from __future__ import annotations

import json

import pytest
from made_up_meter import MadeUpMeter

from phiscale.deploy.benchmark import BENCHMARKED, benchmark, better_buys, more_for_less
from phiscale.deploy.published_accuracy import published_top1
from phiscale.families import get_spec
from phiscale.scaling.complexity import complexity
from phiscale.spec import NetworkSpec
from phiscale.weights.catalog import get_record
from small_model import TINY

# Milliseconds of a machine that likes dense convolutions.
TIMES = {
    "efficientnet_b0": 6.0,
    "efficientnet_b1": 9.0,
    "efficientnet_b2": 12.0,
    "efficientnet_lite0": 5.0,
    "mobilenet_v2": 5.05,
    "resnet18": 3.0,
    "resnet50": 8.0,
}


def rows_of(*names: str) -> list[str]:
    return [row.spec.name for row in benchmark([get_spec(n) for n in names], meter()) if row.on_front]


def meter() -> MadeUpMeter:
    return MadeUpMeter(lambda spec: TIMES.get(spec.name, 1.0))


def test_networks_are_measured_together_with_their_cost() -> None:
    clock = meter()
    rows = benchmark([get_spec(name) for name in TIMES], clock)
    assert len(clock.calls) == 1
    for row, (name, ms) in zip(rows, TIMES.items(), strict=True):
        assert row.spec == get_spec(name)
        assert row.latency.median_ms == ms
        assert row.complexity == complexity(get_spec(name))


def test_the_front_is_what_nothing_beats() -> None:
    rows = benchmark([get_spec(name) for name in TIMES], meter())
    for row in rows:
        assert row.accuracy is not None
        beaten = any(
            other.latency.median_ms < row.latency.median_ms and other.accuracy.top1 >= row.accuracy.top1
            for other in rows
            if other.accuracy is not None
        )
        assert row.on_front is not beaten
    assert {"resnet18", "resnet50"} <= set(rows_of(*TIMES))
    assert "efficientnet_b2" not in rows_of(*TIMES)


def test_a_better_buy_is_faster_and_at_least_as_accurate() -> None:
    rows = benchmark([get_spec(name) for name in TIMES], meter())
    found = {row.spec.name: better.spec.name for row, better in better_buys(rows)}
    # resnet50 is faster than both and reported to be more accurate than either.
    assert found["efficientnet_b1"] == found["efficientnet_b2"] == "resnet50"
    assert "efficientnet_b0" not in found  # resnet18 is faster, but not as accurate
    assert "mobilenet_v2" not in found  # one percent is no difference
    assert "resnet18" not in found


def test_networks_of_one_family_are_no_better_buy() -> None:
    times = {"efficientnet_b1": 5.0, "efficientnet_b2": 9.0}
    clock = MadeUpMeter(lambda spec: times[spec.name])
    assert better_buys(benchmark([get_spec(name) for name in times], clock)) == []


def test_more_multiply_adds_in_less_time() -> None:
    rows = benchmark([get_spec(name) for name in TIMES], meter())
    found = {row.spec.name: faster.spec.name for row, faster in more_for_less(rows)}
    assert found["efficientnet_b0"] == "resnet18"
    assert found["efficientnet_b2"] == "resnet50"  # which has the most multiply-adds of those that are faster
    assert not {"resnet18", "resnet50", "mobilenet_v2"} & found.keys()


def test_a_network_of_ones_own_has_no_accuracy() -> None:
    (row,) = benchmark([TINY], meter())
    assert row.accuracy is None
    assert not row.on_front
    assert json.loads(json.dumps(row.to_dict()))["top1"] is None
    assert better_buys([row]) == more_for_less([row]) == []


def test_batches_count_for_memory_and_throughput() -> None:
    clock = MadeUpMeter(lambda _: 2.0, batch_size=8)
    (row,) = benchmark([get_spec("efficientnet_b0")], clock)
    assert row.complexity.batch_size == 8
    assert row.to_dict()["images_per_second"] == pytest.approx(500)


# ------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("name", BENCHMARKED)
def test_every_compared_network_has_an_accuracy_with_its_source(name: str) -> None:
    accuracy = published_top1(name)
    assert accuracy is not None
    assert 60 < accuracy.top1 < 100
    assert accuracy.weights
    assert accuracy.source


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b3", "efficientnet_b5"])
def test_only_imagenet_at_the_networks_own_size(name: str) -> None:
    accuracy = published_top1(name)
    assert accuracy is not None
    record = get_record(accuracy.weights)
    assert record.image_size == get_spec(name).image_size
    assert "JFT" not in record.training
    assert "12k" not in record.training
    assert accuracy.top1 == record.top1


def test_torchvision_says_it_of_its_own_networks() -> None:
    import torchvision

    accuracy = published_top1("resnet50")
    assert accuracy is not None
    weights = torchvision.models.get_model_weights("resnet50")
    best = max(entry.meta["_metrics"]["ImageNet-1K"]["acc@1"] for entry in weights)
    assert accuracy.top1 == best
    assert "ResNet50_Weights" in accuracy.source


def test_what_nobody_reports_is_unknown() -> None:
    assert published_top1("mobilenet_v1") is None
    assert published_top1("tiny") is None
    assert isinstance(get_spec("mobilenet_v1"), NetworkSpec)
