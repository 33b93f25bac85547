"""The moving average against one by hand, and the small parts of a step."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from toy_training import PREPROCESS, RECIPE, fit, loaders, network

from phiscale.training import checkpoints
from phiscale.training.allocator import keep_freed_memory
from phiscale.training.ema import EmaCallback, ema_decay
from phiscale.training.meter import Meter
from phiscale.training.mixup import mixup
from phiscale.training.randomness import seed_step, step_seed
from phiscale.training.signals import Interrupted, StopSignals
from phiscale.training.task import ClassificationTask


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_average_equals_one_by_hand(decay: float) -> None:
    net = network()
    task = ClassificationTask(net, recipe=RECIPE, preprocess=PREPROCESS, steps_per_epoch=1)
    callback = EmaCallback(decay)
    callback.setup(cast(Any, None), task, "fit")
    expected: dict[str, torch.Tensor] = {}
    for step in range(25):
        with torch.no_grad():
            for value in net.state_dict().values():
                value.add_(1 if value.dtype == torch.int64 else torch.randn(value.shape))
        callback.on_train_batch_end(cast(Any, SimpleNamespace(global_step=step + 1)), task, None, None, step)
        kept = min(decay, (1 + step) / (10 + step)) if step else 0.0
        for name, value in net.state_dict().items():
            if value.dtype == torch.int64:
                expected[name] = value.clone()
            else:
                old = expected.get(name, torch.zeros_like(value, dtype=torch.float64))
                expected[name] = kept * old + (1 - kept) * value.double()
    averages = callback.network.state_dict()
    assert averages.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(averages[name].double(), value.double(), rtol=1e-4, atol=1e-5, msg=name)
        assert averages[name].dtype == net.state_dict()[name].dtype


def test_decay_warms_up() -> None:
    assert [ema_decay(0.99, t) for t in (0, 1, 90, 10**9)] == [0.1, 2 / 11, 0.91, 0.99]


def test_updates_follow_optimizer_steps_not_batches(tmp_path: Path) -> None:
    fit(tmp_path, RECIPE.override({"epochs": 1, "accumulate": 3}))
    found = checkpoints.find(tmp_path)
    assert found is not None
    assert int(found[1]["averaging_state"]["n_averaged"]) == 2


def test_checkpoint_holds_raw_and_averaged_weights(tmp_path: Path) -> None:
    net = network()
    fit(tmp_path, net=net)
    found = checkpoints.find(tmp_path)
    assert found is not None
    averaged, raw = found[1]["state_dict"], found[1]["current_model_state"]
    # Training leaves the average in the network.
    assert all(torch.equal(averaged[f"net.{name}"], value) for name, value in net.state_dict().items())
    assert not torch.equal(raw["net.classifier.weight"], averaged["net.classifier.weight"])


def test_mixup_mixes_images_and_labels_alike() -> None:
    images = torch.zeros(6, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(6)
    images += labels.view(-1, 1, 1, 1)
    torch.manual_seed(0)
    mixed, targets = mixup(images, labels, alpha=0.5, num_classes=6)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 6)
    # The image's value is its class: the mean class of the target must be the value of the mixture.
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets @ torch.arange(6.0))
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_randomness_of_a_step_depends_on_nothing_before_it() -> None:
    seed_step(3, 5, 7)
    first = torch.rand(4)
    torch.rand(100)
    seed_step(3, 5, 7)
    assert torch.equal(torch.rand(4), first)
    seeds = {step_seed(seed, epoch, batch) for seed in range(8) for epoch in range(8) for batch in range(8)}
    assert len(seeds) == 512


def test_meter_weighs_by_batch_size() -> None:
    meter = Meter()
    meter.add(torch.tensor(1.0), torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 1, 1]))
    meter.add(torch.tensor(4.0), torch.eye(2)[:1], torch.tensor([[0.2, 0.8]]))
    assert meter.mean() == pytest.approx(((4 * 1.0 + 4.0) / 5, 3 / 5))
    meter.reset()
    assert meter.count == 0


def test_second_signal_stops_at_once() -> None:
    import os
    import signal

    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.requested
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_allocator_setting_is_best_effort() -> None:
    done = keep_freed_memory()
    assert done == keep_freed_memory()
    if not sys.platform.startswith("linux"):
        assert not done


def test_images_are_channels_last_floats() -> None:
    task = ClassificationTask(network(), recipe=RECIPE, preprocess=PREPROCESS, steps_per_epoch=1)
    images, _ = next(iter(loaders()[0]))
    x = task.prepare(images)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
