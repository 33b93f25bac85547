"""What the machine can do at most: the limit that every line of the tables is held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

__all__ = ["Roofline", "measure_roofline"]

SIDES = (512, 1024, 2048)
# Far beyond any cache.
COPY_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The best that was seen on all threads.

    Attributes:
        fp32: Multiplications and additions of float32 matrices, 1e9 per second.
        bf16: Those of bfloat16.
        int8: Those of int8 with int32 sums.
        gigabytes: Read and written per second by a copy, in 1e9 bytes.
    """

    fp32: float
    bf16: float
    int8: float
    gigabytes: float

    def limit_ms(self, macs: int, precision: str) -> float:
        """Milliseconds that so many multiply-adds take at least.

        Examples:
            >>> Roofline(fp32=200, bf16=400, int8=800, gigabytes=30).limit_ms(386_000_000, "fp32")
            3.86
        """
        operations: float = getattr(self, precision)
        return 2 * macs / (operations * 1e6)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def measure_roofline(*, rounds: int = 10) -> Roofline:
    """The best of several square products, and of a copy, at torch's number of threads.

    Args:
        rounds: How often each is tried.
    """
    rates = {"fp32": 0.0, "bf16": 0.0, "int8": 0.0}
    for side in SIDES:
        for precision in rates:
            seconds = _best(_product(side, precision), rounds)
            rates[precision] = max(rates[precision], 2 * side**3 / seconds / 1e9)
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), rounds)
    return Roofline(**rates, gigabytes=2 * COPY_BYTES / seconds / 1e9)


def _product(side: int, precision: str) -> Callable[[], object]:
    rng = torch.Generator().manual_seed(0)
    if precision == "int8":
        whole = torch.randint(-100, 100, (side, side), dtype=torch.int8, generator=rng)
        return lambda: torch._int_mm(whole, whole)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    left = torch.randn(side, side, generator=rng).to(dtype)
    right = torch.randn(side, side, generator=rng).to(dtype)
    return lambda: left @ right


def _best(call: Callable[[], object], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
