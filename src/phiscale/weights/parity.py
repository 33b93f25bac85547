"""Parity: whether a file's tensors give the same answers here as in their publisher's library.

Keras runs in a process of its own, so that neither its choice of a backend nor its memory stays behind in the
user's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phiscale.errors import ModelDirError, PhiscaleError
from phiscale.nn.network import Network
from phiscale.spec import NetworkSpec
from phiscale.weights.checkpoint import Checkpoint
from phiscale.weights.evidence import FLOATS
from phiscale.weights.publishers import build_reference, fill_reference, library_of, network_name
from phiscale.weights.recognise import to_layout

__all__ = ["Comparison", "ParityResult", "parity", "parity_image", "parity_size"]

# Rounding in float32 makes some 1e-6; another padding or epsilon makes 1e-2 and more.
TOLERANCE = 1e-4
# Where the native size is larger, an image of 224 px tells the same in a fraction of the time.
_LARGEST = 300
_SMALLER = (224, 224)
_COUNTER = ".num_batches_tracked"
_SECONDS = 600

_Run = Callable[[str, NetworkSpec, Mapping[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Our network beside the publisher's, with the same tensors.

    Attributes:
        network: The publisher's name of it.
        settings: Padding and epsilon of both.
        difference: Largest difference of the outputs, as a part of the largest value of theirs; in
            float32, or in float64 where rounding alone makes more than the tolerance.
    """

    network: str
    settings: Mapping[str, Any]
    difference: float

    @property
    def equal(self) -> bool:
        """Whether nothing but rounding differs."""
        return self.difference <= TOLERANCE


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """Whether a file gives the same answers here as in its publisher's library.

    Attributes:
        library: Package and version, such as ``"timm 1.0.31"``; None where nothing was compared.
        image_size: (height, width) of the image in pixels.
        comparisons: One, or one for each choice of settings that the file leaves open.
        reason: Why nothing was compared.
    """

    library: str | None = None
    image_size: tuple[int, int] | None = None
    comparisons: tuple[Comparison, ...] = ()
    reason: str | None = None

    @property
    def equal(self) -> bool | None:
        """Whether all comparisons agree; None without any."""
        return all(item.equal for item in self.comparisons) if self.comparisons else None


def parity(checkpoint: Checkpoint) -> ParityResult:
    """Run a file's tensors in the publisher's network and in ours, on the same image.

    Where the file leaves padding open, as timm's do, it is compared with both of timm's networks: each
    agrees with ours of the same settings, so parity says that the tensors are understood, and not which
    settings they were trained with.

    Args:
        checkpoint: The file.
    """
    if checkpoint.missing or checkpoint.wrong_shape:
        return ParityResult(reason="tensors of the network are missing or of another shape")
    values = [tensor for name, tensor in checkpoint.tensors.items() if not name.endswith(_COUNTER)]
    if not all(tensor.dtype in FLOATS and bool(tensor.isfinite().all()) for tensor in values):
        return ParityResult(reason="the file has values that are not finite, or quantized")
    spec = replace(checkpoint.spec, image_size=parity_size(checkpoint.spec))
    try:
        package = library_of(checkpoint.layout.name, spec)
        comparisons = [_compare(checkpoint, replace(spec, **settings)) for settings in _settings(checkpoint)]
    except PhiscaleError as error:
        return ParityResult(reason=str(error))
    except Exception as error:
        # Other versions of other people's packages fail in ways of their own; a report is due all the same.
        return ParityResult(reason=f"{package} did not run: {type(error).__name__}: {_line(error)}")
    return ParityResult(
        library=f"{package} {metadata.version(package)}",
        image_size=spec.image_size,
        comparisons=tuple(comparisons),
    )


def parity_size(spec: NetworkSpec) -> tuple[int, int]:
    """The size that parity is measured at: the network's own, or 224 px where that is over 300 px."""
    return spec.image_size if max(spec.image_size) <= _LARGEST else _SMALLER


def parity_image(spec: NetworkSpec) -> Tensor:
    """The same image on every machine: (1, in_channels, *image_size), coarse shapes and some noise."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, spec.in_channels, 5, 5, generator=rng)
    noise = torch.randn(1, spec.in_channels, *spec.image_size, generator=rng)
    smooth = nn.functional.interpolate(coarse, spec.image_size, mode="bilinear", align_corners=False)
    return smooth + 0.3 * noise


def _settings(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """What to compare with: what is known, or else what the publisher has."""
    if checkpoint.settings["padding"].value is not None:
        return [{}]
    same = {"padding": "same", "norm_eps": 1e-3}
    match checkpoint.layout.name:
        case "timm":
            return [same, {"padding": "symmetric", "norm_eps": 1e-5}]
        case "torchvision":
            large = checkpoint.spec.name in ("efficientnet_b5", "efficientnet_b6", "efficientnet_b7")
            return [{"padding": "symmetric", "norm_eps": 1e-3 if large else 1e-5}]
    return [same]


def _compare(checkpoint: Checkpoint, spec: NetworkSpec) -> Comparison:
    layout = checkpoint.layout.name
    run = _run_in_process_of_its_own if layout == "keras" else _run_here
    difference = _difference(checkpoint, spec, run, torch.float32)
    if difference > TOLERANCE and run is _run_here:
        # Some weights make much of the smallest rounding; in float64 only a true difference is left.
        difference = _difference(checkpoint, spec, run, torch.float64)
    return Comparison(
        network=network_name(layout, spec),
        settings={"padding": spec.padding, "norm_eps": spec.norm_eps},
        difference=difference,
    )


def _difference(checkpoint: Checkpoint, spec: NetworkSpec, run: _Run, dtype: torch.dtype) -> float:
    layout = checkpoint.layout
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}
    image = parity_image(spec).to(dtype)
    reference = run(layout.name, spec, to_layout(layout, spec, tensors), image)
    with torch.random.fork_rng(devices=[]):
        net = Network(spec).eval().to(dtype)
    net.load_state_dict({**net.state_dict(), **tensors})
    with torch.inference_mode():
        ours = net(image)
    if not bool(torch.stack([ours, reference]).isfinite().all()):
        raise ModelDirError("the networks answer with values that are not finite")
    return float((ours - reference).abs().max() / reference.abs().max().clamp_min(1e-30))


def _run_here(layout: str, spec: NetworkSpec, tensors: Mapping[str, Tensor], image: Tensor) -> Tensor:
    reference = build_reference(layout, spec).to(image.dtype)
    fill_reference(reference, tensors)
    with torch.inference_mode():
        output: Tensor = reference(image)
    return output


def _run_in_process_of_its_own(
    layout: str, spec: NetworkSpec, tensors: Mapping[str, Tensor], image: Tensor
) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        task, answer = Path(folder) / "task.pt", Path(folder) / "answer.pt"
        torch.save({"layout": layout, "spec": spec.to_json(), "tensors": dict(tensors), "image": image}, task)
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(task), str(answer)],
            env={**os.environ, "KERAS_BACKEND": "torch"},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelDirError(f"{layout} did not run: {last[:200]}")
        output: Tensor = torch.load(answer, weights_only=True)
    return output


_PROGRAM = """
import sys
from phiscale.weights.parity import _answer
_answer(*sys.argv[1:])
"""


def _answer(task: str, answer: str) -> None:
    """What the other process does."""
    content = torch.load(task, weights_only=True)
    spec = NetworkSpec.from_json(content["spec"])
    torch.save(_run_here(content["layout"], spec, content["tensors"], content["image"]), answer)


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
