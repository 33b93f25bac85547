from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_nets import TINY, make_net

from phiscale.errors import ModelDirError
from phiscale.nn.network import Network
from phiscale.weights.load import load_weights
from phiscale.weights.model_dir import save


@pytest.fixture
def net() -> Network:
    return make_net(TINY, seed=1)


def test_everything_fits(net: Network, tmp_path: Path) -> None:
    target = Network(TINY)
    report = load_weights(target, save(net, tmp_path))
    assert report.complete
    assert set(report.kept) == set(net.state_dict())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in target.state_dict().items())


def test_another_classifier_stays_new(net: Network, tmp_path: Path) -> None:
    source = save(net, tmp_path)
    target = Network(replace(TINY, num_classes=7))
    fresh = target.state_dict()["classifier.weight"].clone()

    with pytest.raises(ModelDirError, match=r"classifier\.weight \(needs \[7, 32\], found \[3, 32\]\)"):
        load_weights(target, source)
    report = load_weights(target, source, strict=False)

    assert [item.name for item in report.skipped] == ["classifier.weight", "classifier.bias"]
    assert not report.new
    assert not report.unused
    assert torch.equal(target.state_dict()["classifier.weight"], fresh)
    assert torch.equal(target.state_dict()["head.conv.weight"], net.state_dict()["head.conv.weight"])
    assert "classifier.bias (needs [7], found [3])" in str(report)


def test_missing_and_unexpected_are_named(net: Network, tmp_path: Path) -> None:
    state = net.state_dict()
    state["extra"] = state.pop("classifier.bias")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelDirError, match=r"missing: classifier\.bias; unexpected: extra"):
        load_weights(Network(TINY), tmp_path / "weights.pt")
    report = load_weights(Network(TINY), tmp_path / "weights.pt", strict=False)
    assert report.new == ("classifier.bias",)
    assert report.unused == ("extra",)


def test_a_failed_load_changes_nothing(tmp_path: Path) -> None:
    target = Network(TINY)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ModelDirError, match="not one tensor"):
        load_weights(target, tmp_path / "other.pt", strict=False)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_half_precision_source(net: Network, tmp_path: Path) -> None:
    torch.save({key: value.bfloat16() for key, value in net.state_dict().items()}, tmp_path / "half.pt")
    target = Network(TINY)
    load_weights(target, tmp_path / "half.pt")
    loaded, expected = target.state_dict()["classifier.weight"], net.state_dict()["classifier.weight"]
    assert loaded.dtype == torch.float32
    assert torch.allclose(loaded, expected, atol=1e-2)
