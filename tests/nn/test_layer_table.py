from __future__ import annotations

import re

import pytest
import torch

from phiscale.errors import ShapeError
from phiscale.families import get_spec
from phiscale.nn.network import Network
from phiscale.nn.summary import layer_table

B0 = get_spec("efficientnet_b0")


def test_the_layer_table_shows_every_layer() -> None:
    table = layer_table(B0, batch_size=2, image_size=(224, 224))
    with torch.device("meta"):
        modules = list(Network(B0).modules())
    for kind in ("Conv2dSame", "Conv2d", "BatchNorm2d", "Linear", "MBConv", "SqueezeExcite"):
        shown = len(re.findall(rf"─{kind} ", table))
        assert shown == sum(type(module).__name__ == kind for module in modules), kind
    assert "Total params: 5,288,548" in table
    assert "[2, 1000]" in table


def test_the_layer_table_refuses_too_small_an_image() -> None:
    with pytest.raises(ShapeError, match="an input of 16×16 px is too small"):
        layer_table(B0, batch_size=1, image_size=(16, 16))
