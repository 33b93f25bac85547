"""Rounding of scaled channels and repeats, as in the authors' code."""

from __future__ import annotations

import math

from phiscale.errors import SpecError

__all__ = ["round_channels", "round_repeats"]


def round_channels(channels: int, width: float = 1.0, *, divisor: int = 8) -> int:
    """Scale a channel count and round it to a multiple of `divisor`.

    The nearest multiple is taken, at least `divisor`, and the next one up where rounding down would
    lose more than 10 % of the exact value (the authors' `round_filters`). A width of exactly 1 changes
    nothing, so a baseline keeps channel counts that are no multiple of 8.

    Args:
        channels: Channels of the baseline.
        width: Factor w.
        divisor: Channels come out as a multiple of it.

    Raises:
        SpecError: `width` is not a positive finite number, or too large.

    Examples:
        >>> round_channels(32, 1.1), round_channels(40, 1.4), round_channels(16, 0.3)
        (32, 56, 8)
    """
    if not (width > 0 and math.isfinite(width)):
        raise SpecError(f"width must be a positive number, got {width!r}")
    if width == 1.0:
        return channels
    exact = channels * width
    if not math.isfinite(exact):
        raise SpecError(f"width {width:g} is too large for {channels} channels")
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    if rounded < 0.9 * exact:
        rounded += divisor
    return rounded


def round_repeats(repeats: int, depth: float = 1.0) -> int:
    """Scale the number of layers of a stage: ceil(d · L), at least 1 (the authors' `round_repeats`).

    Raises:
        SpecError: `depth` is not a positive finite number, or too large.

    Examples:
        >>> round_repeats(4, 1.1), round_repeats(3, 0.5), round_repeats(1, 0.1)
        (5, 2, 1)
    """
    if not (depth > 0 and math.isfinite(depth)):
        raise SpecError(f"depth must be a positive number, got {depth!r}")
    exact = depth * repeats
    if not math.isfinite(exact):
        raise SpecError(f"depth {depth:g} is too large for {repeats} layers")
    return math.ceil(exact)
