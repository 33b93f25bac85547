"""Networks with random weights in an engine, to be timed: what they answer does not matter, how fast does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.exporters.folding import Array
from phiscale.errors import require
from phiscale.preprocess import Preprocess
from phiscale.spec import NetworkSpec
from phiscale.weights.shapes import tensor_shapes

if TYPE_CHECKING:
    from phiscale.deploy.runtimes.base import Runtime
    from phiscale.deploy.setting import Setting

__all__ = ["opened", "random_images", "random_tensors"]

# A few show the range of every activation; no accuracy hangs on it.
CALIBRATION_IMAGES = 2


def random_tensors(spec: NetworkSpec, *, seed: int = 0) -> dict[str, Array]:
    """Weights and statistics that keep the signal of a sensible size from the first layer to the last.

    A network whose activations vanish would be timed on denormal numbers, which processors are slow with.

    Args:
        spec: The network.
        seed: Of the random numbers.

    Returns:
        Every tensor of the network by our names.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for name, shape in tensor_shapes(spec).items():
        leaf = name.rpartition(".")[2]
        if leaf == "weight" and len(shape) > 1:
            fan_in = int(np.prod(shape[1:]))
            tensors[name] = rng.standard_normal(shape, np.float32) * np.float32((2 / fan_in) ** 0.5)
        elif leaf in ("weight", "running_var"):
            tensors[name] = np.ones(shape, np.float32)
        else:
            tensors[name] = 0.1 * rng.standard_normal(shape, np.float32)
    return tensors


def random_images(spec: NetworkSpec, batch_size: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """A batch (N, H, W, C) of noise."""
    shape = (batch_size, *spec.image_size, spec.in_channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@contextmanager
def opened(spec: NetworkSpec, setting: Setting) -> Iterator[Runtime]:
    """A network with random weights, ready to run as an export of it would, from images to probabilities.

    Args:
        spec: The network.
        setting: Engine, precision and threads.

    Raises:
        MissingDependencyError: The engine, or what writes its files, is not installed.
        ModelDirError: The engine cannot take the network.
    """
    preprocess = Preprocess.for_size(spec.image_size, channels=spec.in_channels)
    if setting.runtime == "torch":
        with _torch(spec, preprocess, setting.threads) as runtime:
            yield runtime
        return
    # An engine may go on reading from its files, so they stay as long as it does.
    with tempfile.TemporaryDirectory(prefix="phiscale-") as folder:
        yield _exported(spec, preprocess, setting, Path(folder))


def _exported(spec: NetworkSpec, preprocess: Preprocess, setting: Setting, folder: Path) -> Runtime:
    require("onnx", extra="deploy")
    from phiscale.deploy.exporters.onnx_graph import build_graph

    graph = build_graph(spec, random_tensors(spec), preprocess=preprocess)
    if setting.runtime == "onnx":
        from phiscale.deploy.runtimes.onnx import OnnxRuntime

        path = folder / "model.onnx"
        path.write_bytes(graph.SerializeToString())
        return OnnxRuntime(path, threads=setting.threads)
    from phiscale.deploy.exporters.openvino import convert, save
    from phiscale.deploy.runtimes.openvino import OpenVinoRuntime

    path = folder / "model.xml"
    save(convert(graph), path)
    if setting.precision == "int8":
        path = _quantized(path, spec)
    return OpenVinoRuntime(path, precision=setting.precision, threads=setting.threads)


def _quantized(path: Path, spec: NetworkSpec) -> Path:
    """The network in int8, with ranges from a few random images; all its layers are quantised that can be."""
    from phiscale.deploy.exporters.openvino_int8 import OpenVinoQuantizer

    int8 = path.with_name("int8.xml")
    OpenVinoQuantizer(path)(int8, random_images(spec, CALIBRATION_IMAGES))
    return int8


@contextmanager
def _torch(spec: NetworkSpec, preprocess: Preprocess, threads: int) -> Iterator[Runtime]:
    import torch

    from phiscale.deploy.runtimes.torch import TorchRuntime
    from phiscale.nn.network import Network

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        network = Network(spec)
        state = {name: torch.from_numpy(np.asarray(value)) for name, value in random_tensors(spec).items()}
        network.load_state_dict(state)
        yield TorchRuntime(network, preprocess)
    finally:
        torch.set_num_threads(before)
