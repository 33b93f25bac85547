"""Small networks of every kind, and models made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from phiscale.deploy.exporters.folding import Array
from phiscale.deploy.exporters.toolchain import Write
from phiscale.deploy.runtimes.torch import TorchRuntime
from phiscale.nn.network import Network
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec
from phiscale.weights.config import ModelDir, read_config
from phiscale.weights.model_dir import load_network, save

MBCONV = NetworkSpec(
    name="mbconv",
    stem=StemSpec(out_channels=8),
    stages=(
        StageSpec(block="mbconv", out_channels=8, se_ratio=0.25),
        StageSpec(
            block="mbconv",
            out_channels=16,
            kernel_size=5,
            stride=2,
            expand_ratio=4,
            se_ratio=0.25,
            num_layers=2,
        ),
    ),
    head=HeadSpec(out_channels=32),
    # Height and width differ, and so do the paddings: stem and stage pad an odd and an even number.
    image_size=(35, 48),
    num_classes=3,
)
SPECS = {
    "mbconv": MBCONV,
    "no skips": replace(MBCONV, stages=tuple(replace(stage, skip=False) for stage in MBCONV.stages)),
    "symmetric": replace(MBCONV, padding="symmetric", conv_bias=True),
    "lite, grey": replace(
        MBCONV,
        activation="relu6",
        in_channels=1,
        stages=tuple(replace(stage, se_ratio=0.0) for stage in MBCONV.stages),
    ),
    "separable": replace(
        MBCONV,
        activation="hard_swish",
        head=None,
        stages=(StageSpec(block="depthwise_separable", out_channels=16, stride=2, num_layers=2),),
    ),
    "bottleneck": replace(
        MBCONV,
        activation="relu",
        head=None,
        stem=StemSpec(out_channels=16, kernel_size=7, max_pool=True),
        stages=(StageSpec(block="bottleneck", out_channels=32, stride=2, num_layers=2),),
    ),
    "basic, symmetric": replace(
        MBCONV,
        activation="relu",
        head=None,
        padding="symmetric",
        stem=StemSpec(out_channels=16, kernel_size=7, max_pool=True),
        stages=(StageSpec(block="basic", out_channels=16, stride=2, num_layers=2),),
    ),
}
METADATA = {"classes": '["a", "b"]', "phiscale": "0"}


def make_network(spec: NetworkSpec, *, seed: int = 0) -> Network:
    """A network whose every parameter and statistic matters; its logits are neither equal nor large."""
    torch.manual_seed(seed)
    net = Network(spec).eval()
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("norm.weight", "norm.bias", "running_mean", ".bias")):
            tensor.add_(0.2 * torch.randn_like(tensor))
    return net


def make_model(folder: Path, spec: NetworkSpec) -> ModelDir:
    classes = [f"class {index}" for index in range(spec.num_classes)]
    return read_config(save(make_network(spec), folder, classes=classes))


def write(function: Write, model: ModelDir, path: Path, *, dynamic_size: bool = False) -> Path:
    function(model, tensors_of(model), path, dynamic_size=dynamic_size, metadata=METADATA)
    return path


def tensors_of(model: ModelDir) -> dict[str, Array]:
    return load_file(model.weights_path)


def eager(model: ModelDir) -> TorchRuntime:
    return TorchRuntime(load_network(model), model.preprocess)


def pixels(model: ModelDir, count: int = 3, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    shape = (count, *(size or model.spec.image_size), model.spec.in_channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def assert_same_answers(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    """Within float32's rounding, of answers that depend on the image where there are several."""
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    assert len(wanted) == 1 or np.ptp(wanted, axis=0).max() > 1e-3 * wanted.max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * wanted.max())
    np.testing.assert_array_equal(found.argmax(1), wanted.argmax(1))
