"""Latency as a function of a spec, learnt from a handful of measurements.

A run multiplies, moves numbers, reads weights and starts operations, and each of them takes its time:

    t = c_mac · multiply-adds + c_move · elements moved + c_weight · weights + c_op · operations + c_run

The five prices are not negative. The first measurement scales usual proportions of them; every further one
pulls them to this machine. What the formula still misses (kernels like some numbers of channels better than
others) is interpolated between neighbours, so that a measured network is predicted as measured.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from phiscale.errors import require
from phiscale.scaling.tape import tape
from phiscale.spec import NetworkSpec

__all__ = ["CostModel"]

# Milliseconds for a multiply-add, an element, a weight, an operation and a run: about what a fit to 104
# networks of four families gives, in OpenVINO, float32, on one thread of an AVX-512 core. Only their
# proportions count for long.
USUAL_PRICES = np.array([8.5e-9, 1.2e-7, 5e-8, 1.2e-3, 0.03])
# What a price that is off by all of its size weighs, against a prediction that is off by all of the time.
LEANING = 0.03
# Folded into convolutions, or into their padding.
FREE = ("norm", "pad")


class CostModel:
    """Predicts the latency of networks from those that were measured.

    Args:
        batch_size: Images in a run.
    """

    def __init__(self, *, batch_size: int = 1) -> None:
        self._batch_size = batch_size
        self._measured: dict[NetworkSpec, float] = {}
        self._prices = USUAL_PRICES
        self._residuals: NDArray[np.float64] = np.zeros((1, 2))

    def add(self, spec: NetworkSpec, ms: float) -> None:
        """Learn from a measurement; a second one of the same network takes the place of the first.

        Args:
            spec: The network.
            ms: Its latency in milliseconds.
        """
        self._measured[spec] = ms
        work = np.array([self._work(known) for known in self._measured])
        times = np.array(list(self._measured.values()))
        self._prices = _fit(work, times)
        formula = work @ self._prices
        order = np.argsort(formula)
        self._residuals = np.column_stack((np.log(formula), np.log(times / formula)))[order]

    def predict(self, spec: NetworkSpec) -> float:
        """The latency of a network in milliseconds."""
        formula = float(self._work(spec) @ self._prices)
        residual = np.interp(math.log(formula), self._residuals[:, 0], self._residuals[:, 1])
        return formula * math.exp(float(residual))

    def _work(self, spec: NetworkSpec) -> NDArray[np.float64]:
        macs, moved, weights, operations = _work_of(spec)
        return np.array(
            [macs * self._batch_size, moved * self._batch_size, weights, operations, 1], np.float64
        )


def _fit(work: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prices that predict the times with the least relative error, drawn towards the usual proportions.

    Args:
        work: (n, 5).
        times: (n,) in milliseconds.
    """
    nnls = require("scipy.optimize", extra="deploy").nnls
    usual = USUAL_PRICES * math.exp(np.log(times / (work @ USUAL_PRICES)).mean())
    leaning = math.sqrt(LEANING)
    # In units of the usual prices, so that all five are near one.
    rows = np.vstack((work * usual / times[:, None], leaning * np.eye(len(usual))))
    wanted = np.concatenate((np.ones(len(times)), np.full(len(usual), leaning)))
    prices: NDArray[np.float64] = nnls(rows, wanted)[0] * usual
    return prices


@lru_cache(maxsize=4096)
def _work_of(spec: NetworkSpec) -> tuple[int, int, int, int]:
    """Multiply-adds, elements read and written, weights, and operations, for one image."""
    ops = [op for op in tape(spec, spec.image_size) if op.kind not in FREE]
    # Activations are computed on the way, where a convolution writes.
    own = [op for op in ops if op.kind != "act"]
    return (
        sum(op.macs for op in own),
        sum(op.in_elements + op.out_elements for op in own),
        sum(op.params for op in own),
        len(own),
    )
