"""Other input channels and other classes than the weights were trained with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import difference, images
from publishers_nets import PUBLISHERS, TOLERANCE, Publisher, random_net
from torch import Tensor, nn

from phiscale.errors import ModelDirError
from phiscale.nn.network import Network, build_network
from phiscale.weights.adapt import for_channels, pick_classes
from phiscale.weights.create import create_model
from phiscale.weights.load import load_weights

# Keras turns its torch variables into arrays in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

B0 = "efficientnet_b0"


# -- channels ------------------------------------------------------------------------------------------


@given(old=st.integers(1, 6), new=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_grey_image_gets_the_same_response(old: int, new: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(4, old, 3, 3, generator=generator, dtype=torch.float64)
    grey = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    adapted = for_channels(kernel, new)
    assert adapted.shape == (4, new, 3, 3)
    before = nn.functional.conv2d(grey.expand(-1, old, -1, -1), kernel)
    after = nn.functional.conv2d(grey.expand(-1, new, -1, -1), adapted)
    assert torch.allclose(before, after, atol=1e-12)


@given(old=st.integers(1, 6), new=st.integers(1, 9))
def test_every_new_channel_is_read(old: int, new: int) -> None:
    kernel = torch.rand(2, old, 1, 1) + 0.1
    assert (for_channels(kernel, new) > 0).all()


def test_one_channel_is_the_sum_and_six_are_halves() -> None:
    kernel = torch.randn(8, 3, 3, 3)
    assert torch.allclose(for_channels(kernel, 1), kernel.sum(1, keepdim=True))
    assert torch.equal(for_channels(kernel, 6), torch.cat([kernel, kernel], 1) / 2)
    assert torch.equal(for_channels(kernel, 3), kernel)
    # The first three of four read what they read before, but red is shared with the fourth.
    assert torch.equal(for_channels(kernel, 4)[:, 1:3], kernel[:, 1:])
    assert torch.equal(for_channels(kernel, 4)[:, 0], for_channels(kernel, 4)[:, 3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_stays(dtype: torch.dtype) -> None:
    assert for_channels(torch.ones(1, 3, 1, 1, dtype=dtype), 2).dtype == dtype


def publisher_of(layout: str) -> Publisher:
    return next(publisher for publisher in PUBLISHERS.values() if publisher.layout == layout)


@pytest.mark.parametrize("layout", dict.fromkeys(publisher.layout for publisher in PUBLISHERS.values()))
def test_a_grey_image_gets_the_answer_of_the_network_for_colours(layout: str, tmp_path: Path) -> None:
    publisher = publisher_of(layout)
    theirs = random_net(publisher, B0, 96)
    path = publisher.save(theirs, tmp_path / "x")
    grey = images(2, (96, 96)).mean(1, keepdim=True)
    with torch.no_grad():
        answer = theirs(grey.expand(-1, 3, -1, -1))
        expected: Tensor = getattr(answer, "logits", answer)
        assert difference(expected[:1], expected[1:]) > 0.01
        for channels in (1, 2, 4, 5):
            net = create_model(B0, weights=path, in_channels=channels, **publisher.settings).eval()
            assert net.spec.in_channels == channels
            assert difference(net(grey.expand(-1, channels, -1, -1)), expected) <= TOLERANCE


def test_a_file_of_another_number_of_channels(tmp_path: Path) -> None:
    """From a network for grey images to one for colours."""
    torch.manual_seed(0)
    one = build_network(B0, in_channels=1).eval()
    torch.save(one.state_dict(), tmp_path / "x")
    three = build_network(B0).eval()
    report = load_weights(three, tmp_path / "x")
    assert report.adapted == {"stem.conv.weight": "1 input channels to 3"}
    assert "1 input channels to 3" in str(report)
    grey = images(1, (64, 64))[:, :1]
    with torch.no_grad():
        assert difference(three(grey.expand(-1, 3, -1, -1)), one(grey)) <= TOLERANCE
    # A name alone leaves the channels to the file.
    with pytest.warns(UserWarning, match="does not say"):
        assert create_model(B0, weights=tmp_path / "x").spec.in_channels == 1


def test_a_stem_of_another_network_is_left_alone(tmp_path: Path) -> None:
    state = build_network(B0).state_dict()
    state["stem.conv.weight"] = torch.zeros(32, 0, 3, 3)
    torch.save(state, tmp_path / "x")
    with pytest.raises(ModelDirError, match=r"stem\.conv\.weight \(needs \[32, 3, 3, 3\]"):
        load_weights(build_network(B0), tmp_path / "x")


# -- classes -------------------------------------------------------------------------------------------

KNOWN = ("tabby, tabby cat", "Egyptian cat", "great_white-shark", "espresso")
STATE = {"classifier.weight": torch.zeros(4, 8)}


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        (["espresso", "Egyptian cat"], [3, 1]),
        (["TABBY CAT", "tabby", "tabby, tabby cat"], [0, 0, 0]),
        (["Great White Shark", "egyptian_cat", "unicorn"], [2, 1, None]),
        (["  espresso  "], [3]),
    ],
)
def test_rows_by_class_name(wanted: list[str], rows: list[int | None]) -> None:
    assert pick_classes(STATE, KNOWN, wanted) == rows


def test_no_known_class_at_all() -> None:
    with pytest.raises(
        ModelDirError, match=r"knows not one of the 2 classes; close to 'expresso' are espresso"
    ):
        pick_classes(STATE, KNOWN, ["expresso", "unicorn"])
    with pytest.raises(ModelDirError, match=r"knows not one of the 1 classes$"):
        pick_classes(STATE, KNOWN, ["zzz"])


@pytest.mark.parametrize("weight", [None, torch.zeros(3, 8), torch.zeros(()), torch.zeros(4)])
def test_without_names_nothing_is_picked(weight: Tensor | None) -> None:
    state = {} if weight is None else {"classifier.weight": weight}
    with pytest.raises(ModelDirError, match="class names are not known; give none"):
        pick_classes(state, KNOWN, ["espresso"])


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file of torchvision's B0, with ImageNet's 1000 classes."""
    publisher = PUBLISHERS["torchvision"]
    state = publisher.tensors(random_net(publisher, B0, 96))
    path = tmp_path_factory.mktemp("imagenet") / "x"
    torch.save(state, path)
    return path, state


def test_classes_of_imagenet_are_picked_by_name(imagenet: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = imagenet
    net = create_model(B0, weights=path, classes=["espresso", "unicorn", "tabby"])
    weight, bias = state["classifier.1.weight"], state["classifier.1.bias"]
    # 967 and 281 are their places in ImageNet's order.
    found = net.get_parameter("classifier.weight")
    assert torch.equal(found[[0, 2]], weight[[967, 281]])
    assert torch.equal(net.get_parameter("classifier.bias")[[0, 2]], bias[[967, 281]])
    assert not (weight == found[1]).all(1).any()
    assert net.spec.num_classes == 3


def test_what_was_picked_is_reported(imagenet: tuple[Path, dict[str, Tensor]]) -> None:
    net = build_network(B0, num_classes=2)
    fresh = net.state_dict()["classifier.weight"].clone()
    report = load_weights(net, imagenet[0], classes=["unicorn", "espresso"])
    assert report.adapted["classifier.weight"] == "1 of 2 rows picked by class name; new: unicorn"
    assert report.complete
    found = net.get_parameter("classifier.weight")
    assert torch.equal(found[0], fresh[0])
    assert not torch.equal(found[1], fresh[1])


def test_as_many_names_as_classes(imagenet: tuple[Path, dict[str, Tensor]]) -> None:
    with pytest.raises(ModelDirError, match="1 classes for a network of 2; give one name per class"):
        load_weights(build_network(B0, num_classes=2), imagenet[0], classes=["espresso"])
    with pytest.raises(ModelDirError, match="1 classes for a network of 5"):
        create_model(B0, weights=imagenet[0], classes=["espresso"], num_classes=5)


def test_a_new_classifier_for_another_number_of_classes(imagenet: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = imagenet
    net = create_model(B0, weights=path, num_classes=7)
    assert net.get_parameter("classifier.weight").shape == (7, 1280)
    assert torch.equal(net.get_parameter("head.conv.weight"), state["features.8.0.weight"])
    assert create_model(B0, weights=path, num_classes=0).spec.num_classes == 0
    assert create_model(B0, weights=path).spec.num_classes == 1000


def test_a_classifier_that_reads_other_features(tmp_path: Path) -> None:
    """Classes cannot be picked from it, and the rest is loaded all the same where that is asked for."""
    torch.save(build_network("efficientnet_b2").state_dict(), tmp_path / "x")
    net = build_network(B0, num_classes=1)
    with pytest.raises(ModelDirError, match="holds efficientnet_b2 and the network is efficientnet_b0"):
        load_weights(net, tmp_path / "x", classes=["espresso"])
    report = load_weights(net, tmp_path / "x", classes=["espresso"], strict=False)
    assert "classifier.weight" in [item.name for item in report.skipped]


def test_networks_of_another_kind_are_adapted_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    three = build_network("resnet18").eval()
    torch.save(three.state_dict(), tmp_path / "x")
    one: Network = build_network("resnet18", in_channels=1, num_classes=4).eval()
    report = load_weights(one, tmp_path / "x")
    assert [item.name for item in report.skipped] == ["classifier.weight", "classifier.bias"]
    grey = images(1, (64, 64))[:, :1]
    with torch.no_grad():
        expected = three.forward_features(grey.expand(-1, 3, -1, -1))
        assert difference(one.forward_features(grey), expected) <= TOLERANCE
