"""Weights for inference: every batch norm folded into the convolution before it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "folded"]

Array = NDArray[np.float32]


def folded(tensors: Mapping[str, Array], *, eps: float) -> dict[str, Array]:
    """Fold batch norms: ``a.conv`` with ``a.norm`` becomes one convolution with a bias.

    w' = w · γ / √(σ² + ε) and b' = β + (b - μ) · γ / √(σ² + ε), computed in float64.

    Args:
        tensors: Parameters and statistics of a network by our names.
        eps: Epsilon of its norms.

    Returns:
        ``a.weight`` and ``a.bias`` for every ``a.conv`` and ``a.norm``; what no norm follows, as it was.
    """
    result: dict[str, Array] = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        prefix, _, kind = module.rpartition(".")
        if kind == "norm" or (kind == "conv" and leaf == "bias"):
            continue
        if kind != "conv":
            result[name] = np.ascontiguousarray(value, np.float32)
            continue
        factor, shift = _norm(tensors, prefix, eps)
        bias = tensors.get(f"{prefix}.conv.bias")
        weight = value.astype(np.float64) * factor.reshape(-1, 1, 1, 1)
        result[f"{prefix}.weight"] = np.ascontiguousarray(weight, np.float32)
        result[f"{prefix}.bias"] = (shift + (0.0 if bias is None else bias * factor)).astype(np.float32)
    return result


def _norm(
    tensors: Mapping[str, Array], prefix: str, eps: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor and shift per channel that a norm comes to."""
    gamma, beta, mean, variance = (
        tensors[f"{prefix}.norm.{leaf}"].astype(np.float64)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / np.sqrt(variance + eps)
    return factor, beta - mean * factor
