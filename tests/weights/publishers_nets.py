"""The publishers' own networks, with random weights and odd batch norm statistics."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from keras_net import KerasNet
from parity import images, perturb
from torch import Tensor, nn

from phiscale.families import get_spec
from phiscale.nn.network import build_network
from phiscale.spec import NetworkSpec
from phiscale.weights.formats import FORMATS

__all__ = [
    "EFFICIENTNETS",
    "LITES",
    "ODD_SIDE",
    "PARITY_FOLDER",
    "PUBLISHERS",
    "TOLERANCE",
    "Publisher",
    "depthwise_padding",
    "logits",
    "norm_eps",
    "random_net",
    "record",
    "rows",
]

# Of the largest logit.
TOLERANCE = 1e-5
# An input that no stride divides, so that every padding counts.
ODD_SIDE = 237
# Where tests leave what they measured, for tools/make_parity_table.py.
PARITY_FOLDER = "PHISCALE_PARITY_FOLDER"

EFFICIENTNETS = tuple(f"efficientnet_b{index}" for index in range(8))
LITES = tuple(f"efficientnet_lite{index}" for index in range(5))

Build = Callable[[str, int], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """A library that has EfficientNets, or a set of files.

    Attributes:
        name: Its name in the table.
        package: What to install for it; its version is stated.
        layout: What this project calls its layout.
        variants: Those of its networks that are compared, by our names.
        build: Our name and a side in pixels -> its network.
        suffix: Of its files.
        any_size: Whether it has a network for every image size, and not for the native one alone.
        settings: What its files do not say, and the user must.
        note: What the reader of the table must know of it.
    """

    name: str
    package: str
    layout: str
    variants: tuple[str, ...]
    build: Build
    suffix: str = ".pth"
    any_size: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def sides(self, name: str) -> tuple[int, ...]:
        """Sides in pixels that a network is compared at, the native one first."""
        native = get_spec(name).image_size[0]
        return (native, ODD_SIDE) if self.any_size else (native,)

    def tensors(self, net: nn.Module) -> dict[str, Tensor]:
        """Every tensor of one of its networks, by the publisher's names."""
        if isinstance(net, KerasNet):
            return net.tensors()
        state = net.state_dict()
        if self.layout != "article":
            return state
        return dict(zip(_article_names(len(state)), state.values(), strict=True))

    def save(self, net: nn.Module, path: Path) -> Path:
        """Write one of its networks as the publisher does, under a name that says nothing of it."""
        if isinstance(net, KerasNet):
            # Keras insists on its own suffix.
            file = path.with_name(f"{path.name}.weights.h5")
            net.model.save_weights(file)
            return file.rename(path)
        torch.save(self.tensors(net), path)
        return path

    def load(self, net: nn.Module, path: Path) -> None:
        """Read such a file as the publisher does, with every name checked."""
        if isinstance(net, KerasNet):
            net.model.load_weights(path)
            return
        state: Mapping[str, Tensor] = torch.load(path, weights_only=True)
        if self.layout == "article":
            assert list(state) == _article_names(len(state))
            state = dict(zip(net.state_dict(), state.values(), strict=True))
        net.load_state_dict(state, strict=True)


def random_net(publisher: Publisher, name: str, side: int, *, seed: int = 0) -> nn.Module:
    """A publisher's network in eval mode, with random weights, and norm statistics of images.

    Args:
        publisher: Whose network.
        name: Our name of it.
        side: Of the images, in pixels; a library that builds for one size builds for this one.
        seed: Of weights and statistics.

    The statistics suit twice the side too. From much smaller images they would not, and a deep network with
    random weights then makes large differences out of the smallest ones.
    """
    torch.manual_seed(seed)
    net = publisher.build(name, side)
    if isinstance(net, KerasNet):
        net.perturb(side)
    else:
        perturb(net, [(side, side)])
    return net.eval()


def norm_eps(net: nn.Module) -> set[float]:
    """The epsilons of all batch norms."""
    if isinstance(net, KerasNet):
        return {norm.epsilon for norm in net.norms}
    return {module.eps for module in net.modules() if isinstance(module, nn.BatchNorm2d)}


def logits(net: nn.Module, side: int, *, count: int = 2) -> Tensor:
    """What a network answers to random images: (count, classes)."""
    with torch.no_grad():
        answer = net(images(count, (side, side)))
    found: Tensor = getattr(answer, "logits", answer)
    return found


def record(publisher: str, name: str, side: int, error: float) -> None:
    """Leave a measured error for the table in the docs, where somebody collects them."""
    folder = os.environ.get(PARITY_FOLDER)
    if folder:
        content = {"publisher": publisher, "variant": name, "side": side, "error": error}
        path = Path(folder) / f"{publisher}-{name}-{side}.json".replace(" ", "_")
        path.write_text(json.dumps(content), encoding="utf-8")


def rows() -> list[tuple[str, str, tuple[int, ...]]]:
    """What the page must show: publisher, network and sides, the native one first."""
    return [
        (publisher.name, name, publisher.sides(name))
        for publisher in PUBLISHERS.values()
        for name in publisher.variants
    ]


def depthwise_padding(spec: NetworkSpec, side: int) -> list[int]:
    """Blocks of stride 2 whose input has an odd side, which transformers pads alike on both sides.

    All others get TensorFlow's padding for an even side; so its networks are right at one size.
    """
    side = -(-side // spec.stem.stride)
    odd = []
    for index, block in enumerate(spec.blocks()):
        if block.stride == 2 and side % 2:
            odd.append(index)
        side = -(-side // block.stride)
    return odd


def _article_names(count: int) -> list[str]:
    """The names of the network with so many tensors."""
    named = (list(FORMATS["article"].tensors(get_spec(name)).values()) for name in EFFICIENTNETS)
    return next(names for names in named if len(names) == count)


def _timm(prefix: str) -> Build:
    def build(name: str, side: int) -> nn.Module:
        net: nn.Module = timm.create_model(f"{prefix}{name}", pretrained=False)
        return net

    return build


def _torchvision(name: str, side: int) -> nn.Module:
    net: nn.Module = torchvision.models.get_model(name, weights=None)
    return net


def _efficientnet_pytorch(name: str, side: int) -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    net: nn.Module = EfficientNet.from_name(name.replace("_", "-"), image_size=side)
    return net


def _efficientnet_lite(name: str, side: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    net: nn.Module = EfficientNet.from_name(name.replace("_", "-"), image_size=side)
    return net


def _transformers(name: str, side: int) -> nn.Module:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    spec, (width, depth) = get_spec(name), _COEFFICIENTS[name]
    values: dict[str, Any] = {
        "width_coefficient": width,
        "depth_coefficient": depth,
        "image_size": side,
        "hidden_dim": spec.num_features,
        "dropout_rate": spec.dropout,
        "depthwise_padding": depthwise_padding(spec, side),
        "num_labels": spec.num_classes,
    }
    net: nn.Module = EfficientNetForImageClassification(EfficientNetConfig(**values))
    return net


def _coefficients() -> dict[str, tuple[float, float]]:
    """Width and depth of every EfficientNet."""
    path = Path(__file__).parents[1] / "golden" / "published.json"
    published = json.loads(path.read_text(encoding="utf-8"))["efficientnet"]
    return {name: (entry["width"], entry["depth"]) for name, entry in published.items()}


_COEFFICIENTS = _coefficients()
_TF = {"padding": "same", "norm_eps": 1e-3}
_PLAIN = {"padding": "symmetric", "norm_eps": 1e-5}

PUBLISHERS: dict[str, Publisher] = {
    publisher.name: publisher
    for publisher in (
        Publisher(
            name="timm tf_efficientnet",
            package="timm",
            layout="timm",
            variants=(*EFFICIENTNETS, *LITES),
            build=_timm("tf_"),
            settings=_TF,
        ),
        Publisher(
            name="timm efficientnet",
            package="timm",
            layout="timm",
            variants=(*EFFICIENTNETS, *LITES),
            build=_timm(""),
            settings=_PLAIN,
        ),
        Publisher(
            name="torchvision",
            package="torchvision",
            layout="torchvision",
            variants=EFFICIENTNETS,
            build=_torchvision,
        ),
        Publisher(
            name="efficientnet_pytorch",
            package="efficientnet_pytorch",
            layout="lukemelas",
            variants=EFFICIENTNETS,
            build=_efficientnet_pytorch,
            note="It pads for one size, so its network is built anew for each.",
        ),
        Publisher(
            name="efficientnet_lite_pytorch",
            package="efficientnet_lite_pytorch",
            layout="lukemelas",
            variants=LITES,
            build=_efficientnet_lite,
            note="It pads for one size, so its network is built anew for each.",
        ),
        Publisher(
            name="transformers",
            package="transformers",
            layout="huggingface",
            variants=EFFICIENTNETS,
            build=_transformers,
            any_size=False,
            note="It pads for the native size, and its answers are others at 237 px.",
        ),
        Publisher(
            name="keras",
            package="keras",
            layout="keras",
            variants=EFFICIENTNETS,
            build=lambda name, side: KerasNet(int(name[-1]), side),
            suffix=".weights.h5",
            note="It pads for one size, so its network is built anew for each. Its backend is torch.",
        ),
        Publisher(
            name="article",
            package="timm",
            layout="article",
            variants=EFFICIENTNETS,
            build=_timm("tf_"),
            note="These files have no library; the reference is timm's tf_ networks, under the files' names.",
        ),
        Publisher(
            name="phiscale",
            package="phiscale",
            layout="phiscale",
            variants=(*EFFICIENTNETS, *LITES),
            build=lambda name, side: build_network(name),
            settings=_TF,
        ),
    )
}
