"""Which precision and which layers train fastest on this machine, by a few steps of each.

The steps are taken in turn, so that a neighbour's noise hits all alike, on a network and images that are
thrown away. A way is taken only if the loss and the gradient of its first step agree with those of plain
float32: to rounding, or, in bf16, about as well as those of torch's own autocast do.

The choice rests on time, so it may come out differently on another day. It is therefore written into the
recipe, whose `tune` is off from then on: with that recipe the run can be repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from phiscale.nn.network import Network
from phiscale.training.allocator import give_back_freed_memory, keep_freed_memory
from phiscale.training.fast_layers import fast_layers
from phiscale.training.recipe import Precision, Recipe

__all__ = ["WAYS", "Tuning", "Way", "sample_size", "tune", "worth_tuning"]

# Float32 in another order of operations gives its loss and gradient to rounding: shares of their lengths.
FLOAT32_TOLERANCE = 1e-2
# bf16 cannot: on random weights and small batches the gradient of torch's own autocast is off by 0.17 (B0 at
# 224 px) to 0.76 (B4 at 96 px) of its length, and more where it is small; docs/log.md has the figures. So
# torch's autocast, with plain layers, is the measure: a way may be so many times as far off as that.
AUTOCAST_TIMES = 1.5

_STEPS = 3  # that are timed, after one that is not
_PIXELS = 200_000  # of a batch on a CPU: 3 images at 224 px, all 128 at 32 px
_LARGEST_SHARE = 0.1  # of a run's images that may be spent on measuring
_LEAST_GAIN = 1.05  # below which plain float32 stays


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train.

    Attributes:
        precision: As in `Recipe`.
        fast_layers: As in `Recipe`.
    """

    precision: Precision
    fast_layers: bool

    def __str__(self) -> str:
        precision = "mixed bf16" if self.precision == "bf16-mixed" else "float32"
        return f"{precision}, {'fast' if self.fast_layers else 'plain'} layers"


PLAIN = Way(precision="32-true", fast_layers=False)
WAYS: dict[str, tuple[Way, ...]] = {
    "cpu": (
        PLAIN,
        Way(precision="32-true", fast_layers=True),
        Way(precision="bf16-mixed", fast_layers=True),
    ),
    "cuda": (PLAIN, Way(precision="bf16-mixed", fast_layers=False)),
}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was measured and chosen.

    Attributes:
        recipe: With the fastest way, and `tune` off.
        way: That way.
        seconds: Of a step of plain float32, and of each way that agreed with it.
    """

    recipe: Recipe
    way: Way
    seconds: dict[Way, float]

    @property
    def times(self) -> float:
        """How many times as fast as plain float32."""
        return self.seconds[PLAIN] / self.seconds[self.way]

    def __str__(self) -> str:
        if self.way == PLAIN:
            return f"{self.way}: nothing else is faster here (tune)"
        return f"{self.way}: {self.times:.1f} × as fast as {PLAIN} (tune)"


def sample_size(image_size: tuple[int, int], batch_size: int, device: torch.device) -> int:
    """Images in a batch that is measured.

    On a CPU a part of a batch will do, and memory stays below what the run itself will need.

    Examples:
        >>> sample_size((224, 224), 128, torch.device("cpu")), sample_size((32, 32), 128, torch.device("cpu"))
        (3, 128)
    """
    if device.type != "cpu":
        return batch_size
    return min(batch_size, max(2, _PIXELS // math.prod(image_size)))


def worth_tuning(recipe: Recipe, image_size: tuple[int, int], *, images: int, device: torch.device) -> bool:
    """Whether a run is long enough to pay for the measurement.

    By counting alone, so that the answer is the same every time.

    Args:
        recipe: How to train.
        image_size: (height, width) in pixels.
        images: Training images.
        device: Where.
    """
    if device.type not in WAYS:
        return False
    steps = (1 + _STEPS) * len(WAYS[device.type]) + 1  # torch's autocast, to compare with
    measured = steps * sample_size(image_size, recipe.batch_size, device)
    return measured <= _LARGEST_SHARE * images * recipe.epochs


def tune(net: Network, recipe: Recipe, *, device: torch.device, ways: Sequence[Way] | None = None) -> Tuning:
    """Measure, and choose.

    Args:
        net: The network to train. Its weights stay, its gradients and running statistics do not: give one
            that is thrown away.
        recipe: How to train. Its layout, checkpointing and batch size count.
        device: Where; the network is moved there.
        ways: What to choose from, plain float32 first; None is all that there are for the device.
    """
    ways = WAYS[device.type] if ways is None else tuple(ways)
    assert ways[0] == PLAIN
    if device.type == "cpu":
        keep_freed_memory()  # as the run will
    with torch.random.fork_rng():
        trial = _Trial(net, recipe, device)
        seconds: dict[Way, list[float]] = {way: [] for way in (PLAIN, *trial.agreeing(ways))}
        for _ in range(_STEPS):
            for way, measured in seconds.items():
                measured.append(trial.time(way))
    del trial
    net.zero_grad()
    give_back_freed_memory()
    # The shortest of each: whatever else the machine did made the others longer.
    best = {way: min(measured) for way, measured in seconds.items()}
    way = min(best, key=best.__getitem__)
    if best[PLAIN] < _LEAST_GAIN * best[way]:
        way = PLAIN
    chosen = replace(recipe, tune="off", precision=way.precision, fast_layers=way.fast_layers)
    return Tuning(recipe=chosen, way=way, seconds=best)


@dataclass(frozen=True)
class _Result:
    """What a step gives: the loss, and the gradients of all parameters."""

    loss: Tensor
    gradients: tuple[Tensor, ...]

    def distance(self, reference: _Result) -> float:
        """How far gradients, as one vector, and loss are off, as a share of the reference; the larger."""
        apart = torch._foreach_sub(self.gradients, reference.gradients)
        gradient = _length(apart) / _length(reference.gradients)
        loss = (self.loss - reference.loss).abs() / reference.loss.abs()
        return float(torch.maximum(gradient, loss))  # not a number where either is none


class _Trial:
    """Takes steps of a network in different ways, always the same step."""

    def __init__(self, net: Network, recipe: Recipe, device: torch.device) -> None:
        spec = net.spec
        self.net = net.to(device).train()
        self.net.set_grad_checkpointing(recipe.grad_checkpointing)
        batch = sample_size(spec.image_size, recipe.batch_size, device)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(batch, spec.in_channels, *spec.image_size, generator=generator).to(device)
        if recipe.channels_last:
            self.images = self.images.contiguous(memory_format=torch.channels_last)
            self.net.to(memory_format=torch.channels_last)
        self.labels = (torch.arange(batch) % spec.num_classes).to(device)

    def agreeing(self, ways: Sequence[Way]) -> list[Way]:
        """Those that compute what plain float32 does; they have been warmed up."""
        if (exact := self.first(PLAIN)) is None:
            return []
        allowed = {"32-true": FLOAT32_TOLERANCE}
        found = []
        for way in ways:
            if way == PLAIN:
                continue
            if way.precision not in allowed:
                usual = self.first(replace(way, fast_layers=False))
                allowed[way.precision] = math.nan if usual is None else AUTOCAST_TIMES * usual.distance(exact)
            result = self.first(way)
            if result is not None and result.distance(exact) <= allowed[way.precision]:
                found.append(way)
        return found

    def first(self, way: Way) -> _Result | None:
        """A step that is not timed; None where the machine cannot take it."""
        try:
            loss = self._step(way)
        except (RuntimeError, NotImplementedError):  # too little memory, or an operation that is missing
            return None
        gradients = (p.grad for p in self.net.parameters())
        return _Result(loss.detach(), tuple(grad.clone() for grad in gradients if grad is not None))

    def time(self, way: Way) -> float:
        """Seconds of a step."""
        self._wait()
        began = time.perf_counter()
        self._step(way)
        self._wait()
        return time.perf_counter() - began

    def _step(self, way: Way) -> Tensor:
        torch.manual_seed(0)  # dropout and drop path
        self.net.zero_grad()
        mixed = way.precision == "bf16-mixed"
        with (
            fast_layers(self.net, enabled=way.fast_layers),
            torch.autocast(self.images.device.type, torch.bfloat16, enabled=mixed),
        ):
            logits = self.net(self.images)
        loss = F.cross_entropy(logits.float(), self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _wait(self) -> None:
        if self.images.device.type == "cuda":
            torch.cuda.synchronize(self.images.device)


def _length(tensors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).norm()
