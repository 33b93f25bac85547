"""Forward passes on a GPU: this project and timm in several precisions, compiled, and as CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import interleave
from benchmarks.networks import Subject

__all__ = ["BATCHES", "describe", "measure_gpu"]

BATCHES = (1, 4, 16, 64, 256)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WARMUP = 3
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a network runs.

    Attributes:
        precision: A key of `DTYPES`.
        channels_last: The layout of images and weights.
        compiled: Whether by torch.compile.
        graph: Whether its kernels are launched at once, as a CUDA graph.
    """

    precision: str
    channels_last: bool = True
    compiled: bool = False
    graph: bool = False

    def __str__(self) -> str:
        words = (
            (self.precision, True),
            ("channels_last", self.channels_last),
            ("torch.compile", self.compiled),
            ("CUDA graph", self.graph),
        )
        return ", ".join(word for word, holds in words if holds)


def ways(device: torch.device) -> Iterator[Way]:
    """As it comes, and then with everything that makes it faster; on a CPU without the last two."""
    yield Way(precision="fp32", channels_last=False)
    for precision in DTYPES:
        yield Way(precision=precision)
    if device.type == "cuda":
        for precision in ("fp16", "bf16"):
            yield Way(precision=precision, graph=True)
            yield Way(precision=precision, compiled=True)
            yield Way(precision=precision, compiled=True, graph=True)


def measure_gpu(
    subject: Subject, *, device: str = "cuda", batches: Sequence[int] = BATCHES, rounds: int = 10
) -> list[Row]:
    """A row per library, way and batch, with the largest difference from timm in fp32 as it comes.

    Args:
        subject: The network.
        device: Such as ``"cuda"``; a CPU takes the same path without graphs and compilation.
        batches: Images per run.
        rounds: Of timing.
    """
    target = torch.device(device)
    nets = {"timm": subject.in_library("timm"), "phiscale": subject.of_padding(subject.spec.padding)}
    images = subject.images(min(max(batches), 16))
    rows: list[Row] = []
    for batch in batches:
        repeated = images[[index % len(images) for index in range(batch)]]
        rows += _rows(nets, subject.input_of(repeated), target, rounds)
    return rows


def _rows(nets: dict[str, nn.Module], images: Tensor, device: torch.device, rounds: int) -> list[Row]:
    calls: dict[str, Callable[[], Tensor]] = {}
    lines: list[tuple[str, Way]] = []
    for way in ways(device):
        for library, net in nets.items():
            calls[f"{library} {way}"] = runner(net, images, way, device)
            lines.append((library, way))
    answers = {name: call().float().cpu() for name, call in calls.items()}
    reference = next(iter(answers.values()))
    timings = interleave(
        {name: _synchronised(call, device) for name, call in calls.items()},
        rounds=rounds,
        warmup=WARMUP,
        title=f"{device}, batch {len(images)}",
    )
    first = timings[next(iter(calls))].median_ms
    return [
        {
            "library": library,
            "way": str(way),
            "precision": way.precision,
            "batch": len(images),
            "median_ms": timings[name].median_ms,
            "p90_ms": timings[name].p90_ms,
            "images_per_second": 1000 * len(images) / timings[name].median_ms,
            "times_timm": first / timings[name].median_ms,
            "difference": float((answers[name] - reference).abs().max() / reference.abs().max()),
            "agreement": float((answers[name].argmax(1) == reference.argmax(1)).float().mean()),
        }
        for (library, way), name in zip(lines, calls, strict=True)
    ]


@torch.inference_mode()
def runner(net: nn.Module, images: Tensor, way: Way, device: torch.device) -> Callable[[], Tensor]:
    """A call that runs a copy of a network in a way, without waiting for the device.

    Args:
        net: In eval mode.
        images: (N, C, H, W) on the CPU.
        way: How it runs.
        device: Where.
    """
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    dtype = DTYPES[way.precision]
    own: Callable[[Tensor], Tensor] = copy.deepcopy(net).to(device, dtype).to(memory_format=layout)
    batch = images.to(device, dtype).to(memory_format=layout)
    if way.compiled:
        own = torch.compile(own, dynamic=False)

    @torch.inference_mode()
    def call() -> Tensor:
        return own(batch)

    return _graph(call, device) if way.graph else call


def _graph(call: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The kernels of a call, recorded once."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    # What is chosen or compiled at the first calls must not be recorded.
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _synchronised(call: Callable[[], Tensor], device: torch.device) -> Callable[[], None]:
    def timed() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return timed


def describe(device: str = "cuda") -> dict[str, Any]:
    """The GPU and what drives it."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }
