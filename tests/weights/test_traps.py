"""What the traps say of other people's libraries holds in the versions that are installed."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from phiscale.families import get_spec
from phiscale.weights.publishers import build_reference
from phiscale.weights.traps import TRAPS


def test_the_documentation_has_every_trap_and_its_source() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "weights.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for trap in TRAPS:
        (row,) = [row for row in rows if row.startswith(f"| {trap.name} | ")]
        assert trap.text in row.replace("\\*", "*")
        for url in re.findall(r"https://[^\s,;]+", trap.source):
            assert f"({url})" in row


def timm_network(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name)


def eps_and_momentum(net: nn.Module) -> set[tuple[float, float | None]]:
    return {(m.eps, m.momentum) for m in net.modules() if isinstance(m, nn.BatchNorm2d)}


def test_timms_two_families_share_names_and_shapes_and_differ_in_settings() -> None:
    tf, plain = timm_network("tf_efficientnet_b0"), timm_network("efficientnet_b0")
    shapes = [{name: tuple(t.shape) for name, t in net.state_dict().items()} for net in (tf, plain)]
    assert shapes[0] == shapes[1]
    assert {eps for eps, _ in eps_and_momentum(tf)} == {1e-3}
    assert {eps for eps, _ in eps_and_momentum(plain)} == {1e-5}
    assert type(tf.conv_stem).__name__ == "Conv2dSame"
    assert tuple(plain.conv_stem.padding) == (1, 1)


def test_timms_conv_pw_is_a_projection_in_the_first_stage_only() -> None:
    net = timm_network("efficientnet_b0")
    first, second = net.blocks[0][0], net.blocks[1][0]
    assert first.conv_pw.out_channels == 16  # the stage's output
    assert second.conv_pw.out_channels == 6 * 16  # the expanded width
    assert second.conv_pwl.out_channels == 24


def test_timms_sizes_and_normalisation() -> None:
    def config(name: str) -> dict[str, object]:
        found: Any = timm.get_pretrained_cfg(name)
        return dict(found.to_dict())

    assert config("tf_efficientnet_lite3.in1k")["input_size"] == (3, 300, 300)
    assert config("tf_efficientnet_lite4.in1k")["input_size"] == (3, 380, 380)
    assert get_spec("efficientnet_lite3").image_size == (280, 280)
    assert get_spec("efficientnet_lite4").image_size == (300, 300)
    assert config("tf_efficientnet_b0.ap_in1k")["mean"] == (0.5, 0.5, 0.5)
    assert config("tf_efficientnet_b0.aa_in1k")["mean"] == (0.485, 0.456, 0.406)
    assert config("tf_efficientnet_l2.ns_jft_in1k_475")["input_size"] == (3, 475, 475)
    assert config("tf_efficientnet_l2.ns_jft_in1k")["input_size"] == (3, 800, 800)


@pytest.mark.parametrize("index", range(8))
def test_torchvisions_two_epsilons(index: int) -> None:
    with torch.device("meta"):
        net = models.get_model(f"efficientnet_b{index}", weights=None)
    assert eps_and_momentum(net) == {(1e-5, 0.1) if index < 5 else (1e-3, 0.01)}


def test_torchvisions_crops_differ_and_the_large_ones_are_ported() -> None:
    weights = [models.get_model_weights(f"efficientnet_b{index}")["IMAGENET1K_V1"] for index in range(8)]
    crops = [weight.transforms().crop_size[0] for weight in weights]
    assert crops == [224, 240, 288, 300, 380, 456, 528, 600]
    assert ["lukemelas" in weight.url for weight in weights] == [False] * 5 + [True] * 3


def test_efficientnet_pytorch_pads_for_one_size_and_replaces_the_stem() -> None:
    from efficientnet_pytorch import EfficientNet

    odd, even, any_size = (
        EfficientNet.from_name("efficientnet-b0", image_size=size) for size in (225, 224, None)
    )
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    maps = []
    for net in (odd, even, any_size):
        net._conv_stem.load_state_dict(odd._conv_stem.state_dict())
        maps.append(net._conv_stem(x))
    assert torch.equal(maps[1], maps[2])
    assert maps[0].shape == maps[1].shape
    assert (maps[0] - maps[1]).abs().max() > 0.1 * maps[1].abs().max()
    stem = even._conv_stem.weight
    even._change_in_channels(1)
    assert even._conv_stem.weight.shape == (32, 1, 3, 3)
    assert not torch.isclose(even._conv_stem.weight, stem.sum(1, keepdim=True)).any()


def test_transformers_momentum_and_padding() -> None:
    from transformers import EfficientNetConfig

    config = EfficientNetConfig()
    assert config.batch_norm_momentum == 0.99
    b0 = get_spec("efficientnet_b0")
    network = build_reference("huggingface", b0)
    assert eps_and_momentum(network) == {(1e-3, 0.99), (1e-3, 0.1)}
    momenta = {
        name.rpartition(".")[2]: module.momentum
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    assert [name for name, momentum in momenta.items() if momentum == 0.1] == ["expand_bn"]


def test_transformers_divides_by_std_twice() -> None:
    from transformers import EfficientNetImageProcessor

    processor: Any = EfficientNetImageProcessor(do_resize=False, size={"height": 8, "width": 8})
    image = torch.rand(3, 8, 8)
    once, twice = (
        processor(image, do_rescale=False, include_top=top, return_tensors="pt")["pixel_values"]
        for top in (False, True)
    )
    std = torch.tensor(processor.image_std)[:, None, None]
    torch.testing.assert_close(twice, once / std)


KERAS = """
import numpy as np, keras
from keras.applications import efficientnet
x = np.random.rand(1, 32, 32, 3)
assert efficientnet.preprocess_input(x) is x
from keras.src.applications.imagenet_utils import correct_pad
none, even, odd = (correct_pad(keras.Input((side, side, 3)), 3) for side in (None, 32, 33))
assert none == even == ((0, 1), (0, 1)) and odd == ((1, 1), (1, 1))
model = efficientnet.EfficientNetB0(weights=None)
print([type(layer).__name__ for layer in model.layers if "caling" in type(layer).__name__])
"""


def test_keras_normalises_by_itself_and_pads_for_one_size() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KERAS],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # Two with weights="imagenet": the second divides by √std.
    assert done.stdout.splitlines()[-1] == "['Rescaling']"


def test_kerass_hidden_rescaling_is_in_its_code() -> None:
    spec = importlib.util.find_spec("keras")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "src" / "applications" / "efficientnet.py"
    code = path.read_text(encoding="utf-8")
    assert 'if weights == "imagenet":' in code
    assert "1.0 / math.sqrt(stddev) for stddev in IMAGENET_STDDEV_RGB" in code


def test_timms_loader_prefers_averaged_weights() -> None:
    from timm.models import load_state_dict

    assert inspect.signature(load_state_dict).parameters["use_ema"].default is True
