"""Forward passes on a GPU: this project and timm in several precisions, compiled, and as CUDA graphs."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Timing, interleave
from benchmarks.networks import Subject

__all__ = ["BATCHES", "describe", "measure_gpu", "show", "ways"]

BATCHES = (1, 8, 32, 128, 256)
# A compilation takes tens of seconds, and each batch, precision and library needs its own.
COMPILED_BATCHES = (1, 32, 256)
# No compilation begins after so many seconds of them.
COMPILING_SECONDS = 120.0
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WARMUP = 3
Row = dict[str, Any]
Call = Callable[[], Tensor]


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


def ways(device: torch.device, *, compiled: bool = True) -> Iterator[Way]:
    """As it comes, and then with everything that makes it faster; on a CPU without the last two.

    Args:
        device: Where.
        compiled: Whether torch.compile is one of them.
    """
    yield Way(precision="fp32", channels_last=False)
    for precision in DTYPES:
        yield Way(precision=precision)
    if device.type == "cuda":
        for precision in ("bf16", "fp16"):
            yield Way(precision=precision, graph=True)
            if compiled:
                yield Way(precision=precision, compiled=True)
                yield Way(precision=precision, compiled=True, graph=True)


def measure_gpu(
    subject: Subject, *, device: str = "cuda", batches: Sequence[int] = BATCHES, rounds: int = 5
) -> list[Row]:
    """A row per library, way and batch, with the largest difference from timm in fp32 as it comes.

    A way that fails is a row with its ``error``, and no times.

    Args:
        subject: The network.
        device: Such as ``"cuda"``; a CPU takes the same path without graphs and compilation.
        batches: Images per run.
        rounds: Of timing.
    """
    target = torch.device(device)
    nets = {"timm": subject.in_library("timm"), "phiscale": subject.of_padding(subject.spec.padding)}
    images = subject.images(min(max(batches), 16))
    makers = _Makers(nets, target)
    rows: list[Row] = []
    for batch in batches:
        repeated = images[[index % len(images) for index in range(batch)]]
        chosen = list(ways(target, compiled=batch in COMPILED_BATCHES))
        try:
            found = _rows(makers, subject.input_of(repeated), chosen, rounds)
        except Exception as error:  # a device that is lost in one batch may be back in the next
            found = [_failed(one, way, batch, _first_line(error)) for way in chosen for one in nets]
        show(found)
        rows += found
        makers.forget()
    return rows


class _Makers:
    """Makes calls out of networks and ways, and remembers how long it has compiled.

    Args:
        nets: The networks by library, in eval mode on the CPU.
        device: Where they run.
    """

    def __init__(self, nets: Mapping[str, nn.Module], device: torch.device) -> None:
        self.nets, self.device = nets, device
        self.compiling_seconds = 0.0
        self._made: dict[tuple[str, Way], Call] = {}

    def make(self, library: str, way: Way, images: Tensor) -> tuple[Call, Tensor]:
        """A call that has run, and its answer (N, K) on the CPU.

        Args:
            library: Whose network.
            way: How it runs.
            images: (N, C, H, W) on the CPU.

        Raises:
            TimeoutError: It would have to be compiled, and there is no time left for that.
        """
        began = time.monotonic()
        call = self._call(library, way, images)
        answer = call().float().cpu()
        if way.compiled and not way.graph:
            self.compiling_seconds += time.monotonic() - began
        self._made[library, way] = call
        return call, answer

    def forget(self) -> None:
        """Free what was made."""
        self._made.clear()
        gc.collect()
        # It gives up on code that it has compiled for eight sizes, without a word.
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _call(self, library: str, way: Way, images: Tensor) -> Call:
        if way.graph:
            # The same kernels, recorded: nothing is compiled twice.
            plain = replace(way, graph=False)
            known = self._made.get((library, plain))
            return _graph(known or self._call(library, plain, images), self.device)
        if way.compiled and self.compiling_seconds > COMPILING_SECONDS:
            raise TimeoutError(f"not compiled: others took {self.compiling_seconds:.0f} s")
        return runner(self.nets[library], images, way, self.device)


def _rows(makers: _Makers, images: Tensor, chosen: Sequence[Way], rounds: int) -> list[Row]:
    calls: dict[tuple[str, Way], Call] = {}
    answers: dict[tuple[str, Way], Tensor] = {}
    errors: dict[tuple[str, Way], str] = {}
    batch, everybody = len(images), [(library, way) for way in chosen for library in makers.nets]
    first = everybody[0]
    for library, way in everybody:
        began = time.monotonic()
        try:
            calls[library, way], answers[library, way] = makers.make(library, way, images)
        except Exception as error:  # one way that does not work here costs no other
            if (library, way) == first:  # but there is nothing to compare with
                raise
            errors[library, way] = _first_line(error)
        said = errors.get((library, way), f"ready after {time.monotonic() - began:.1f} s")
        print(f"  batch {batch}, {library}, {way}: {said}", flush=True)
    timings = interleave(
        {f"{library} {way}": _synchronised(call, makers.device) for (library, way), call in calls.items()},
        rounds=rounds,
        warmup=WARMUP,
        title=f"{makers.device}, batch {batch}",
    )
    rows = []
    for library, way in everybody:
        if (library, way) in errors:
            rows.append(_failed(library, way, batch, errors[library, way]))
            continue
        times = _times(timings[f"{library} {way}"], timings[f"{first[0]} {first[1]}"], batch)
        answer = _compare(answers[library, way], answers[first])
        rows.append({**_head(library, way, batch), **times, **answer})
    return rows


def _head(library: str, way: Way, batch: int) -> Row:
    return {"library": library, "way": str(way), "precision": way.precision, "batch": batch}


def _failed(library: str, way: Way, batch: int, error: str) -> Row:
    return {**_head(library, way, batch), "error": error}


def _times(timing: Timing, reference: Timing, batch: int) -> Row:
    return {
        "median_ms": timing.median_ms,
        "p90_ms": timing.p90_ms,
        "images_per_second": 1000 * batch / timing.median_ms,
        "times_timm": reference.median_ms / timing.median_ms,
    }


def _compare(answer: Tensor, reference: Tensor) -> Row:
    return {
        "difference": float((answer - reference).abs().max() / reference.abs().max()),
        "agreement": float((answer.argmax(1) == reference.argmax(1)).float().mean()),
    }


def show(rows: Sequence[Row]) -> None:
    """Print a line per row."""
    for row in rows:
        start = f"  batch {row['batch']:4} {row['library']:10}{row['way']:48}"
        if "error" in row:
            print(f"{start} {row['error']}", flush=True)
            continue
        print(
            f"{start}{row['median_ms']:9.3f} ms{row['images_per_second']:10.0f} img/s"
            f"{row['times_timm']:7.2f} ×{row['difference']:10.1e}",
            flush=True,
        )


def runner(net: nn.Module, images: Tensor, way: Way, device: torch.device) -> Call:
    """A call that runs a copy of a network in a way, without waiting for the device.

    Args:
        net: In eval mode.
        images: (N, C, H, W) on the CPU.
        way: How it runs; of a CUDA graph this is what is recorded.
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

    return call


def _graph(call: Call, device: torch.device) -> Call:
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


def _synchronised(call: Call, device: torch.device) -> Callable[[], None]:
    def timed() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return timed


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


def describe(device: str = "cuda") -> dict[str, Any]:
    """The GPU and what drives it."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        # Of matrix products and of convolutions in fp32.
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }
