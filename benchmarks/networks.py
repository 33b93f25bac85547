"""The networks that everybody runs: the same weights in every library, and model directories of ours."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import phiscale
from benchmarks.pictures import PHOTOGRAPHS, prepared, write_jpegs
from phiscale.data.transforms import normalize
from phiscale.deploy.export_store import Export, Format, Precision, list_exports
from phiscale.deploy.pretrained import open_pretrained
from phiscale.errors import MissingDependencyError, PhiscaleError, require
from phiscale.nn.layers import SqueezeExcite
from phiscale.nn.network import Network
from phiscale.nn.recalibrate import recalibrate_norms
from phiscale.preprocess import Preprocess
from phiscale.spec import NetworkSpec, Padding
from phiscale.weights.config import read_config
from phiscale.weights.formats import FORMATS
from phiscale.weights.publishers import build_reference, fill_reference
from phiscale.weights.recognise import to_layout

__all__ = ["EXPORTS", "LITE", "MAX_DROP", "Subject", "lite", "make_subject", "scratch"]

LITE = "efficientnet_lite0"
WARM_STARTS = {"efficientnet_b0": "lite0-warm-start"}
GATE_STD = 0.05
EXPORTS: tuple[tuple[Format, Precision], ...] = (
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
# Images by their seeds, so that none is used for two things.
STATISTICS, CALIBRATION, FITTING, ANSWERS, FOLDER = range(5)
CALIBRATION_IMAGES = 128
# What `phiscale export` allows by itself.
MAX_DROP = 0.5
STATISTICS_IMAGES = 16
FITTING_IMAGES = 200
# Of the least squares fit, and the factor that turns its targets of 0 and 1 into logits.
RIDGE, LOGITS = 1e-2, 10.0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to be measured, as our own in eval mode on the CPU.

    Attributes:
        network: With its weights.
        preprocess: How images are prepared for it.
        classes: Names of its classes.
        folder: Where its files are put: model directory, exports, images.
        calibration_images: How many images int8 is calibrated with.
        max_drop: Points of agreement that our int8 may cost; layers stay in floating point for it.
        exports: Formats and precisions of ours.
        start: The weights that it started from; None where they were random.
    """

    network: Network
    preprocess: Preprocess
    classes: tuple[str, ...]
    folder: Path
    calibration_images: int = CALIBRATION_IMAGES
    max_drop: float = MAX_DROP
    exports: tuple[tuple[Format, Precision], ...] = EXPORTS
    start: str | None = None

    @property
    def spec(self) -> NetworkSpec:
        """What the network is."""
        return self.network.spec

    @property
    def name(self) -> str:
        """Such as ``efficientnet_b0``."""
        return self.spec.name

    @property
    def macs(self) -> int:
        """Multiply-adds of one image."""
        return phiscale.complexity(self.spec).macs

    @cached_property
    def directory(self) -> Path:
        """The model directory, without exports at first."""
        return phiscale.save(
            self.network, self.folder / "model", classes=self.classes, preprocess=self.preprocess
        )

    def images(self, count: int, *, seed: int = ANSWERS, emoji: int = 0) -> NDArray[np.uint8]:
        """Real images (N, H, W, 3), prepared but for normalisation."""
        return prepared(self.preprocess, count, seed=seed, emoji=emoji)

    def input_of(self, images: NDArray[np.uint8]) -> Tensor:
        """What a network gets: normalised, (N, 3, H, W) float32."""
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        return normalize(batch, self.preprocess)

    @cached_property
    def same_padded(self) -> NetworkSpec:
        """The spec of the networks that pad as TensorFlow does, with these weights."""
        return replace(self.spec, padding="same", norm_eps=1e-3)

    def spec_for(self, layout: str) -> NetworkSpec:
        """The spec that a publisher's library builds: some have one padding only."""
        return self.spec if layout in ("timm", "torchvision") else self.same_padded

    def tensors(self, layout: str) -> dict[str, Tensor]:
        """The weights by a publisher's names."""
        return to_layout(FORMATS[layout], self.spec_for(layout), self.network.state_dict())

    def in_library(self, layout: str) -> nn.Module:
        """The publisher's own network with these weights, in eval mode; it returns logits."""
        reference = build_reference(layout, self.spec_for(layout))
        fill_reference(reference, self.tensors(layout))
        return reference.eval()

    def of_padding(self, padding: str) -> Network:
        """Our network with these weights and a padding."""
        if padding == self.spec.padding:
            return self.network
        net = Network(self.same_padded)
        net.load_state_dict(self.network.state_dict())
        return net.eval()

    def export(self) -> dict[tuple[str, str], Export]:
        """Make every one of `exports` that this installation can, and say which it cannot.

        Returns:
            Format and precision -> the export.
        """
        made = {(export.format, export.precision) for export in list_exports(read_config(self.directory))}
        images = self.folder / "calibration"
        if not images.is_dir():
            write_jpegs(images, self.calibration_images, seed=CALIBRATION)
        for format_, precision in self.exports:
            if (format_, precision) not in made:
                try:
                    phiscale.export(
                        self.directory, format_, precision=precision, images=images, max_drop=self.max_drop
                    )
                except PhiscaleError as error:
                    print(f"{self.name}: no {format_} in {precision}: {error}")
        found = {(one.format, one.precision): one for one in list_exports(read_config(self.directory))}
        return {key: found[key] for key in self.exports if key in found}

    @cached_property
    def timm_onnx(self) -> Path:
        """timm's network, exported by torch as its users do, with a dynamic batch."""
        path = self.folder / "timm.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        net = self.in_library("timm")
        image = torch.zeros(1, self.spec.in_channels, *self.spec.image_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its age, and of sizes that become constants
            torch.onnx.export(
                net,
                (image,),
                str(path),
                dynamo=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            )
        return path

    @cached_property
    def timm_int8(self) -> Path:
        """timm's export in int8, by NNCF as it comes."""
        nncf, ov = require("nncf", extra="deploy"), require("openvino", extra="deploy")

        nncf.set_log_level(logging.ERROR)
        images = self.images(self.calibration_images, seed=CALIBRATION)
        inputs = [self.input_of(image[None]).numpy() for image in images]
        with contextlib.redirect_stdout(io.StringIO()):  # a progress bar
            quantized = nncf.quantize(
                ov.Core().read_model(self.timm_onnx), nncf.Dataset(inputs), subset_size=len(inputs)
            )
        path = self.folder / "timm-int8.xml"
        ov.save_model(quantized, path, compress_to_fp16=False)
        return path


def make_subject(
    name: str,
    folder: Path,
    *,
    padding: Padding = "symmetric",
    image_size: int | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    fitting_images: int = FITTING_IMAGES,
) -> Subject:
    """A network whose first classes are the photographs.

    B0 has the trained filters of Lite0 where the package with them is installed, other networks have random
    weights. The norms have statistics of
    photographs, and the classifier is fitted to tell them apart, by least squares on features of crops: the
    most likely class then has a meaning, and is not a matter of rounding.

    Args:
        name: From `phiscale.list_specs`.
        folder: For its files.
        padding: ``"symmetric"`` as in timm's and torchvision's own, which are faster so, or ``"same"``.
        image_size: Side in pixels; None takes the network's own.
        calibration_images: How many images int8 is calibrated with.
        fitting_images: How many the classifier is fitted to.
    """
    torch.manual_seed(0)
    start = WARM_STARTS.get(name)
    build = partial(
        phiscale.create_model,
        name,
        padding=padding,
        norm_eps=1e-3 if padding == "same" else 1e-5,
        image_size=image_size,
    )
    try:
        net = build(weights=start).eval()
    except MissingDependencyError as error:
        print(f"{name} has random weights: {error}", flush=True)
        start, net = None, build().eval()
    if start is not None:
        _move_gates(net)
    others = (f"class_{index}" for index in range(len(PHOTOGRAPHS), net.spec.num_classes))
    made = Subject(
        network=net,
        preprocess=Preprocess.for_size(net.spec.image_size),
        classes=(*PHOTOGRAPHS, *others),
        folder=folder / f"{name}-{padding}",
        calibration_images=calibration_images,
        max_drop=100.0,  # every layer in int8, as in what it is compared with
        start=start,
    )
    images = made.images(STATISTICS_IMAGES, seed=STATISTICS)
    recalibrate_norms(net, torch.split(made.input_of(images), 8))
    _fit_classifier(made, fitting_images)
    return made


@torch.no_grad()
def _move_gates(net: nn.Module) -> None:
    """Let squeeze-excite depend on the image; it starts constant, and an engine might leave it out."""
    for module in net.modules():
        if isinstance(module, SqueezeExcite):
            nn.init.normal_(module.expand.weight, std=GATE_STD)


def lite(folder: Path, *, calibration_images: int = CALIBRATION_IMAGES) -> Subject:
    """EfficientNet-Lite0 with its authors' ImageNet weights."""
    described, net = open_pretrained("imagenet", model=LITE)
    return Subject(
        network=net.eval(),
        preprocess=described.preprocess,
        classes=described.classes,
        folder=folder / LITE,
        calibration_images=calibration_images,
    )


@torch.no_grad()
def _fit_classifier(subject: Subject, count: int) -> None:
    images = subject.images(count, seed=FITTING)
    pooled = [
        subject.network.forward_features(x).mean((2, 3)) for x in torch.split(subject.input_of(images), 16)
    ]
    features = torch.cat(pooled).double()
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    scaled = (features - mean) / std
    photographs = torch.arange(len(images)) % len(PHOTOGRAPHS)
    targets = nn.functional.one_hot(photographs, len(subject.classes)).double()
    # More features than images: the dual form of ridge regression.
    kernel = scaled @ scaled.T
    kernel += RIDGE * kernel.diagonal().mean() * torch.eye(len(images), dtype=torch.float64)
    weight = LOGITS * torch.linalg.solve(kernel, targets - targets.mean(0)).T @ scaled / std
    classifier = subject.network.classifier
    assert isinstance(classifier, nn.Linear)
    classifier.weight.copy_(weight)
    classifier.bias.copy_(LOGITS * targets.mean(0) - weight @ mean)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for models and images, gone at the end."""
    return tempfile.TemporaryDirectory(prefix="phiscale-benchmark-")
