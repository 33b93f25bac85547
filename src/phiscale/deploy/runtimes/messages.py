"""What an engine's own error says, in one line."""

from __future__ import annotations

__all__ = ["first_line", "last_line"]


def first_line(error: Exception) -> str:
    """First line of an error's text, or its kind where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def last_line(error: Exception) -> str:
    """Last line of an error's text, where OpenVINO says what happened, or its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
