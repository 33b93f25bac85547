"""Everybody's files to ours and back: the same tensors, and the answers of the publisher's own network.

Fast and slow tests together measure all variants, and so make docs/weights-parity.md: `make parity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from parity import difference
from publishers_nets import (
    ODD_SIDE,
    PUBLISHERS,
    TOLERANCE,
    Publisher,
    logits,
    norm_eps,
    random_net,
    record,
    rows,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from phiscale.families import get_spec
from phiscale.weights.convert import convert_weights
from phiscale.weights.create import create_model
from phiscale.weights.formats import FORMATS
from phiscale.weights.recognise import recognise, to_layout

# Keras turns its torch variables into arrays in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

B0 = "efficientnet_b0"
PAGE = Path(__file__).parents[2] / "docs" / "weights-parity.md"

Case = tuple[Publisher, str]
CASES: list[Case] = [(publisher, name) for publisher in PUBLISHERS.values() for name in publisher.variants]
B3_IS_FAST = ("torchvision", "transformers")
FAST = [
    case
    for case in CASES
    if case[1] in (B0, "efficientnet_lite0") or (case[1] == "efficientnet_b3" and case[0].name in B3_IS_FAST)
]


def by_name(case: Case) -> str:
    return f"{case[0].name.replace(' ', '-')}-{case[1]}"


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """The same names in the same order, and every tensor of the same type and the same bit for bit."""
    assert list(one) == list(other)
    assert {name: tensor.dtype for name, tensor in one.items()} == {
        name: tensor.dtype for name, tensor in other.items()
    }
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def there_and_back(first: Path, publisher: Publisher) -> Path:
    """A publisher's file to one of ours, and to one of its own again; no name says what is in it."""
    ours, back = first.with_name("y"), first.with_name(f"z{publisher.suffix}")
    assert not convert_weights(first, "phiscale", first.with_name("y.safetensors")).dropped
    first.with_name("y.safetensors").rename(ours)
    assert not convert_weights(ours, publisher.layout, back).dropped
    return back


def compare(
    publisher: Publisher, name: str, folder: Path, *, calibration: int, sides: tuple[int, ...]
) -> None:
    theirs = random_net(publisher, name, calibration)
    first = publisher.save(theirs, folder / "x")
    back = there_and_back(first, publisher)
    ours = create_model(name, weights=first, **publisher.settings).eval()
    assert {ours.spec.norm_eps} == norm_eps(theirs)
    for side in sides:
        net = publisher.build(name, side).eval()
        publisher.load(net, back)
        same(publisher.tensors(theirs), publisher.tensors(net))
        expected = logits(net, side)
        # Two images must not look alike, or nothing is compared.
        assert difference(expected[:1], expected[1:]) > 0.01
        error = difference(logits(ours, side), expected)
        record(publisher.name, name, side, error)
        assert error <= TOLERANCE, f"at {side} px"


def compare_at_all_sides(publisher: Publisher, name: str, folder: Path) -> None:
    sides = publisher.sides(name)
    compare(publisher, name, folder, calibration=max(96, sides[0] // 2), sides=sides)


@pytest.mark.parametrize("case", FAST, ids=by_name)
def test_parity(case: Case, tmp_path: Path) -> None:
    compare_at_all_sides(*case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in FAST], ids=by_name)
def test_parity_of_the_others(case: Case, tmp_path: Path) -> None:
    compare_at_all_sides(*case, tmp_path)


def test_parity_of_b7_on_small_images(tmp_path: Path) -> None:
    compare(PUBLISHERS["torchvision"], "efficientnet_b7", tmp_path, calibration=96, sides=(96,))


@pytest.mark.parametrize(
    "publisher", [p for p in PUBLISHERS.values() if p.name not in ("keras", "efficientnet_lite_pytorch")]
)
def test_the_tensors_of_b7_there_and_back(publisher: Publisher) -> None:
    """Without files and networks, which take long."""
    with torch.device("meta"):
        shapes = publisher.tensors(publisher.build("efficientnet_b7", 600))
    # Tensors of one number each, which takes no memory.
    state = {name: torch.tensor(float(i)).expand(t.shape) for i, (name, t) in enumerate(shapes.items())}
    match = recognise(state)
    assert match.complete
    assert (match.layout.name, match.spec) == (publisher.layout, get_spec("efficientnet_b7"))
    ours = to_layout(FORMATS["phiscale"], match.spec, match.tensors)
    again = recognise(ours)
    same(state, to_layout(FORMATS[publisher.layout], again.spec, again.tensors))


@pytest.mark.parametrize("library", ["timm tf_efficientnet", "transformers", "article"])
def test_files_of_safetensors(library: str, tmp_path: Path) -> None:
    publisher = PUBLISHERS[library]
    state = publisher.tensors(random_net(publisher, B0, 96))
    save_file(dict(state), tmp_path / "x")
    convert_weights(tmp_path / "x", "phiscale", tmp_path / "y.pth")
    convert_weights(tmp_path / "y.pth", publisher.layout, tmp_path / "z.safetensors")
    same(dict(sorted(state.items())), dict(sorted(load_file(tmp_path / "z.safetensors").items())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_stay_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    publisher = PUBLISHERS["torchvision"]
    net = random_net(publisher, B0, 96).to(dtype)
    assert publisher.tensors(net)["classifier.1.weight"].dtype == dtype
    back = there_and_back(publisher.save(net, tmp_path / "x"), publisher)
    same(publisher.tensors(net), torch.load(back, weights_only=True))


def test_every_other_layout_on_the_way(tmp_path: Path) -> None:
    """Keras comes last: it does not keep the counters of batches."""
    publisher = PUBLISHERS["timm tf_efficientnet"]
    net = random_net(publisher, B0, 96)
    publisher.save(net, tmp_path / "0.pth")
    layouts = ["lukemelas", "huggingface", "article", "torchvision", "phiscale", "timm"]
    for step, layout in enumerate(layouts, 1):
        convert_weights(tmp_path / f"{step - 1}.pth", layout, tmp_path / f"{step}.pth")
    same(publisher.tensors(net), torch.load(tmp_path / "6.pth", weights_only=True))
    convert_weights(tmp_path / "6.pth", "keras", tmp_path / "7.weights.h5")
    convert_weights(tmp_path / "7.weights.h5", "timm", tmp_path / "8.pth")
    kept = {name: t for name, t in publisher.tensors(net).items() if not name.endswith("num_batches_tracked")}
    same(kept, torch.load(tmp_path / "8.pth", weights_only=True))


# -- what the numbers mean -----------------------------------------------------------------------------


def test_the_wrong_settings_would_be_seen(tmp_path: Path) -> None:
    publisher = PUBLISHERS["torchvision"]
    theirs = random_net(publisher, B0, 96)
    path = publisher.save(theirs, tmp_path / "x")
    expected = logits(theirs, 96)
    with pytest.warns(UserWarning, match="padding='same' is asked for"):
        padded = create_model(B0, weights=path, padding="same").eval()
    with pytest.warns(UserWarning, match=r"norm_eps=0\.001 is asked for"):
        normed = create_model(B0, weights=path, norm_eps=1e-3).eval()
    assert difference(logits(padded, 96), expected) > 0.01
    assert difference(logits(normed, 96), expected) > 10 * TOLERANCE


def test_transformers_networks_are_right_at_one_side_only(tmp_path: Path) -> None:
    """Which is why the table has no odd side for them."""
    publisher = PUBLISHERS["transformers"]
    theirs = random_net(publisher, B0, 224)
    ours = create_model(B0, weights=publisher.save(theirs, tmp_path / "x")).eval()
    assert difference(logits(ours, 224), logits(theirs, 224)) <= TOLERANCE
    assert difference(logits(ours, ODD_SIDE), logits(theirs, ODD_SIDE)) > 0.01


# -- the page ------------------------------------------------------------------------------------------


def read_page(text: str) -> dict[tuple[str, str, int], float]:
    """Publisher, network and side in pixels -> error."""
    found: dict[tuple[str, str, int], float] = {}
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells[:1] == ["Network"]:
            header = cells
        elif cells[1:] and cells[1].isdigit():
            errors = zip(header[2:], cells[2:], strict=True)
            found |= {(who, cells[0], int(cells[1])): float(cell) for who, cell in errors if cell != "–"}
    return found


def test_the_page_has_every_network_and_every_error_is_small() -> None:
    """Run `make parity` where one is missing: it measures all and writes the page."""
    errors = read_page(PAGE.read_text(encoding="utf-8"))
    assert errors.keys() == {(who, name, side) for who, name, sides in rows() for side in sides}
    assert all(0 <= error <= TOLERANCE for error in errors.values())
