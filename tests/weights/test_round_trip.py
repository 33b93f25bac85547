"""Everybody's files to ours and back: the same tensors, and the answers of the publisher's own network.

The slow tests measure all variants, and so make the table in docs/weights-parity.md: `make parity`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from parity import difference
from publishers_nets import ODD_SIDE, PUBLISHERS, TOLERANCE, Publisher, logits, random_net, record, rows
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phiscale.families import get_spec
from phiscale.weights.convert import convert_weights
from phiscale.weights.create import create_model

FAST = ("efficientnet_b0", "efficientnet_b3", "efficientnet_lite0")
PAGE = Path(__file__).parents[2] / "docs" / "weights-parity.md"

Case = tuple[Publisher, str]
CASES: list[Case] = [(publisher, name) for publisher in PUBLISHERS.values() for name in publisher.variants]


def by_name(case: Case) -> str:
    return f"{case[0].name.replace(' ', '-')}-{case[1]}"


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """The same names in the same order, and every tensor the same bit for bit."""
    assert list(one) == list(other)
    assert {name: tensor.dtype for name, tensor in one.items()} == {
        name: tensor.dtype for name, tensor in other.items()
    }
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def there_and_back(state: Mapping[str, Tensor], layout: str, folder: Path) -> dict[str, Tensor]:
    """A publisher's state dict through a file of its own, one of ours, and one of its own again.

    No name of a file says what is in it.
    """
    first, ours, back = folder / "x.bin", folder / "y.safetensors", folder / "z.pth"
    torch.save(dict(state), first)
    report = convert_weights(first, "phiscale", ours)
    assert not report.dropped
    assert not convert_weights(ours.rename(folder / "y.bin"), layout, back).dropped
    content: dict[str, Tensor] = torch.load(back, weights_only=True)
    return content


def compare(publisher: Publisher, name: str, sides: tuple[int, ...], folder: Path) -> None:
    theirs = random_net(publisher, name, sides[0])
    state = publisher.state(theirs, name)
    back = there_and_back(state, publisher.layout, folder)
    same(state, back)
    ours = create_model(name, weights=folder / "x.bin", **publisher.settings).eval()
    assert {ours.spec.norm_eps} == {m.eps for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)}
    for side in sides:
        net = publisher.build(name, side).eval()
        publisher.load(net, back, name)
        expected = logits(net, side)
        # Two images must not look alike, or nothing is compared.
        assert difference(expected[:1], expected[1:]) > 0.01
        error = difference(logits(ours, side), expected)
        record(publisher.name, name, side, error)
        assert error <= TOLERANCE, f"at {side} px"


@pytest.mark.parametrize("case", [case for case in CASES if case[1] in FAST], ids=by_name)
def test_parity(case: Case, tmp_path: Path) -> None:
    publisher, name = case
    compare(publisher, name, publisher.sides(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case[1] not in FAST], ids=by_name)
def test_parity_of_the_others(case: Case, tmp_path: Path) -> None:
    publisher, name = case
    compare(publisher, name, publisher.sides(name), tmp_path)


@pytest.mark.parametrize("library", ["torchvision", "transformers"])
def test_parity_of_b7_on_small_images(library: str, tmp_path: Path) -> None:
    compare(PUBLISHERS[library], "efficientnet_b7", (96,), tmp_path)


@pytest.mark.parametrize("library", ["timm tf_efficientnet", "transformers", "article"])
def test_round_trip_through_safetensors(library: str, tmp_path: Path) -> None:
    publisher, name = PUBLISHERS[library], "efficientnet_b0"
    state = publisher.state(random_net(publisher, name, 224), name)
    save_file(state, tmp_path / "x")
    convert_weights(tmp_path / "x", "phiscale", tmp_path / "y.pth")
    convert_weights(tmp_path / "y.pth", publisher.layout, tmp_path / "z.safetensors")
    same(dict(sorted(state.items())), dict(sorted(load_file(tmp_path / "z.safetensors").items())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_stay_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    publisher, name = PUBLISHERS["torchvision"], "efficientnet_b0"
    state = publisher.state(random_net(publisher, name, 224).to(dtype), name)
    assert state["classifier.1.weight"].dtype == dtype
    same(state, there_and_back(state, publisher.layout, tmp_path))


def test_every_other_layout_on_the_way(tmp_path: Path) -> None:
    publisher, name = PUBLISHERS["timm tf_efficientnet"], "efficientnet_b0"
    state = publisher.state(random_net(publisher, name, 224), name)
    torch.save(state, tmp_path / "0.pth")
    layouts = ["lukemelas", "huggingface", "article", "torchvision", "phiscale", "timm"]
    for step, layout in enumerate(layouts, 1):
        convert_weights(tmp_path / f"{step - 1}.pth", layout, tmp_path / f"{step}.pth")
    same(state, torch.load(tmp_path / f"{len(layouts)}.pth", weights_only=True))


def test_the_wrong_settings_would_be_seen(tmp_path: Path) -> None:
    publisher, name = PUBLISHERS["torchvision"], "efficientnet_b0"
    theirs = random_net(publisher, name, 96)
    torch.save(theirs.state_dict(), tmp_path / "x")
    expected = logits(theirs, 96)
    with pytest.warns(UserWarning, match="padding='same' is asked for"):
        padded = create_model(name, weights=tmp_path / "x", padding="same").eval()
    with pytest.warns(UserWarning, match=r"norm_eps=0\.001 is asked for"):
        normed = create_model(name, weights=tmp_path / "x", norm_eps=1e-3).eval()
    assert difference(logits(padded, 96), expected) > 0.01
    assert difference(logits(normed, 96), expected) > 10 * TOLERANCE


def test_transformers_has_one_size_only() -> None:
    """Why its rows of the table have no odd size."""
    publisher, name = PUBLISHERS["transformers"], "efficientnet_b0"
    theirs = random_net(publisher, name, ODD_SIDE)
    ours = create_model(name)
    assert theirs.state_dict()["efficientnet.embeddings.convolution.weight"].shape == ours.stem.conv.weight.shape
    ...


def test_the_table_has_every_row_and_every_row_holds() -> None:
    table = read_table(PAGE.read_text(encoding="utf-8"))
    assert table.keys() == {(publisher, name) for publisher, name, _ in rows()}
    for publisher, name, sides in rows():
        measured = table[publisher, name]
        assert tuple(measured) == sides
        assert all(0 <= error <= TOLERANCE for error in measured.values())


def read_table(text: str) -> dict[tuple[str, str], dict[int, float]]:
    """Publisher and variant -> side in pixels -> error."""
    cells = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    found: dict[tuple[str, str], dict[int, float]] = {}
    for publisher, variant, native, at_native, at_odd in cells[1:]:
        found[publisher, variant] = {int(native): float(at_native)}
        if at_odd != "–":
            found[publisher, variant][ODD_SIDE] = float(at_odd)
    return found
