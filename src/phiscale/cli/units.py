"""Quantities as people write them: ``1G``, ``4.5e9``, ``300 MiB``; and back."""

from __future__ import annotations

import re

import typer

__all__ = ["format_bytes", "format_count", "format_duration", "parse_bytes", "parse_count"]

COUNT_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
BYTE_UNITS = {
    "": 1, "b": 1,
    "k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
QUANTITY = re.compile(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def _parse(text: str, units: dict[str, float], example: str) -> float:
    match = QUANTITY.fullmatch(text)
    unit = match.group(2).lower() if match else ""
    try:
        number = float(match.group(1)) if match else -1.0
    except ValueError:
        number = -1.0
    if match is None or unit not in units or number <= 0:
        raise typer.BadParameter(f"{text!r} is no positive quantity; write it like {example}")
    return number * units[unit]


def parse_count(text: str) -> float:
    """``"1.5G"`` → 1.5e9; units K, M, G (or B), T, each a thousand times the one before."""
    return _parse(text, COUNT_UNITS, "1.2G, 390M or 4e8")


def parse_bytes(text: str) -> float:
    """``"300MB"`` → 3e8, ``"300MiB"`` → 314572800."""
    return _parse(text, BYTE_UNITS, "20MB or 1.5GiB")


def format_count(value: float) -> str:
    """386_000_000 → ``"386M"``, with three digits that count."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value / size:.0f}{unit}"
    return f"{value:.3g}"


def format_bytes(value: float) -> str:
    """21_400_000 → ``"21.4 MB"``, decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:.0f} {unit}"
    return f"{value:.0f} B"


def format_duration(seconds: float) -> str:
    """150 → ``"2 min"``, in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
