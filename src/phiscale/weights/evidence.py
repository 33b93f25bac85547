"""What tensors tell of themselves: values that are broken, and signs of what no file says.

A sign is evidence, not a fact: it is shown beside a setting and never sets one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from phiscale.spec import NetworkSpec

__all__ = [
    "FLOATS",
    "Evidence",
    "Finding",
    "Lean",
    "find_broken",
    "gather_evidence",
    "horizontal_lean",
    "uncounted",
]

# A layer's lean counts from here on: in standard errors over its channels, and in pixels.
_SIGNIFICANT, _LEAST_LEAN = 5.0, 0.03
_LEAST_LAYERS = 2
# A channel whose variance is below this part of its layer's median never changes.
_DEAD = 1e-6
_COUNTER = ".num_batches_tracked"
# What networks are trained and run in; anything else is a file for special hardware.
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about the values of a file.

    Attributes:
        problem: ``"nan"``, ``"infinite"``, ``"negative variance"``, ``"zero"``, ``"quantized"``,
            ``"fresh statistics"`` or ``"dead channels"``.
        tensors: Our names of the tensors where it was seen.
        text: A sentence.
        broken: Whether the network cannot work like this; dead channels do no harm.
    """

    problem: str
    tensors: tuple[str, ...]
    text: str
    broken: bool = True


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A sign of a setting that files do not hold.

    Attributes:
        setting: ``"padding"``, ``"norm_eps"`` or ``"norm_momentum"``.
        points_to: The value that it speaks for; None where the test does not decide.
        text: What was seen, with its figures.
    """

    setting: str
    points_to: str | float | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Lean:
    """Where the energy of a layer's depthwise kernels lies, left or right of their middle.

    Attributes:
        name: Our name of the kernels.
        pixels: Mean over the channels of the centre of w², from the middle; negative is left.
        error: Standard error of that mean.
    """

    name: str
    pixels: float
    error: float

    @property
    def significant(self) -> bool:
        """Whether it is no accident of the channels."""
        return abs(self.pixels) >= max(_LEAST_LEAN, _SIGNIFICANT * self.error)


def find_broken(tensors: Mapping[str, Tensor]) -> tuple[Finding, ...]:
    """Look for values that no trained network has.

    Args:
        tensors: By our names.
    """
    floating = {name: tensor for name, tensor in tensors.items() if tensor.dtype in FLOATS}
    others = [name for name in tensors if name not in floating and not name.endswith(_COUNTER)]
    variances = {name: tensor for name, tensor in floating.items() if name.endswith(".running_var")}
    weights = {name: tensor for name, tensor in floating.items() if name.endswith(".weight")}
    found = (
        _finding("nan", "NaN", (n for n, t in floating.items() if t.isnan().any())),
        _finding("infinite", "infinite values", (n for n, t in floating.items() if t.isinf().any())),
        _finding(
            "negative variance", "variances below zero", (n for n, t in variances.items() if t.lt(0).any())
        ),
        _finding("zero", "nothing but zeros", (n for n, t in weights.items() if not t.any())),
        _finding("quantized", "integers or 8-bit numbers", others),
        _fresh(floating),
        _dead(variances),
    )
    return tuple(finding for finding in found if finding is not None)


def gather_evidence(
    spec: NetworkSpec, tensors: Mapping[str, Tensor], *, counters: bool = True
) -> tuple[Evidence, ...]:
    """Signs of padding and of batch norm's epsilon.

    Args:
        spec: The network.
        tensors: By our names.
        counters: Whether the file's layout has counters of batches at all; Keras' has none.
    """
    found = [_padding(horizontal_lean(spec, tensors))]
    if counters and uncounted(tensors):
        text = (
            "batch norms have statistics, but counted no batch: they come from another framework, such as "
            "TensorFlow, whose EfficientNets have 0.001"
        )
        found.append(Evidence(setting="norm_eps", points_to=1e-3, text=text))
    return tuple(found)


def horizontal_lean(spec: NetworkSpec, tensors: Mapping[str, Tensor]) -> tuple[Lean, ...]:
    """Which way the depthwise kernels of stride 2 lean, layer by layer.

    At stride 2 and an even size, TensorFlow's "SAME" pads on the right only, PyTorch's symmetric padding in
    effect on the left only; at odd sizes both pad alike. So a network with one kind of padding is the exact
    mirror image of one with the other, and where training flips images at random, as for ImageNet, what one
    learns is the mirror image of what the other learns. Kernels do lean: those of the authors' Lite0 to
    Lite2 ("SAME") to the left, those of torchvision's MobileNetV2 (symmetric) as far to the right.

    Args:
        spec: The network.
        tensors: By our names.
    """
    leans = []
    for block in spec.blocks():
        name = f"stages.{block.stage_index}.{block.layer_index}.depthwise.conv.weight"
        kernel = tensors.get(name)
        if block.stride == 2 and kernel is not None and kernel.dim() == 4 and kernel.dtype in FLOATS:
            lean = _lean(name, kernel)
            if lean is not None:
                leans.append(lean)
    return tuple(leans)


def uncounted(tensors: Mapping[str, Tensor]) -> bool:
    """Whether batch norms have statistics of their own, but counters at zero, or none at all."""
    counters = [tensor for name, tensor in tensors.items() if name.endswith(_COUNTER)]
    trained = any(name.endswith(".running_var") for name in tensors) and _fresh(tensors) is None
    return trained and not any(bool(tensor.any()) for tensor in counters)


def _padding(leans: tuple[Lean, ...]) -> Evidence:
    counted = [lean for lean in leans if lean.significant]
    left = [lean for lean in counted if lean.pixels < 0]
    figures = ", ".join(f"{lean.pixels:+.2f}±{lean.error:.2f}" for lean in leans)
    what = f"depthwise kernels of stride 2 ({figures} px)" if leans else "no depthwise kernel of stride 2"
    if len(counted) >= _LEAST_LAYERS and len(left) in (0, len(counted)):
        side, value = ("left", "same") if left else ("right", "symmetric")
        text = f"{what} lean to the {side}, as training with {value} padding and random flips leaves them"
        return Evidence(setting="padding", points_to=value, text=text)
    return Evidence(setting="padding", points_to=None, text=f"{what}: no clear lean to one side")


def _lean(name: str, kernel: Tensor) -> Lean | None:
    energy = kernel.detach().double().square().sum((1, 2))  # (channels, width)
    total = energy.sum(1)
    alive = total > _DEAD * total.median()
    if kernel.shape[-1] < 2 or int(alive.sum()) < 2 or not bool(torch.isfinite(total).all()):
        return None
    offsets = torch.arange(kernel.shape[-1], dtype=torch.float64) - (kernel.shape[-1] - 1) / 2
    centres = (energy[alive] * offsets).sum(1) / total[alive]
    return Lean(name=name, pixels=centres.mean().item(), error=centres.std().item() / len(centres) ** 0.5)


def _fresh(tensors: Mapping[str, Tensor]) -> Finding | None:
    means = {name: t for name, t in tensors.items() if name.endswith(".running_mean")}
    variances = [t for name, t in tensors.items() if name.endswith(".running_var")]
    if (
        not means
        or any(bool(t.any()) for t in means.values())
        or not all(bool(t.eq(1).all()) for t in variances)
    ):
        return None
    return Finding(
        problem="fresh statistics",
        tensors=(),  # all of them
        text="batch norms have mean 0 and variance 1 throughout: they never saw a batch, nothing was trained",
    )


def _dead(variances: Mapping[str, Tensor]) -> Finding | None:
    counts = {
        name: int(tensor.float().abs().le(_DEAD * tensor.float().abs().median()).sum())
        for name, tensor in variances.items()
        if tensor.numel()
    }
    dead, total = sum(counts.values()), sum(t.numel() for t in variances.values())
    if not dead:
        return None
    return Finding(
        problem="dead channels",
        tensors=tuple(name for name, count in counts.items() if count),
        text=f"{dead:,} of {total:,} channels before a batch norm never change, whatever the image",
        broken=False,
    )


def _finding(problem: str, what: str, names: Iterable[str] | Iterator[str]) -> Finding | None:
    tensors = tuple(names)
    if not tensors:
        return None
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return Finding(problem=problem, tensors=tensors, text=f"{what} in {tensors[0]}{more}")
