"""What an engine's own error says, in one line."""

from __future__ import annotations

__all__ = ["first_line"]


def first_line(error: Exception) -> str:
    """First line of an error's text, or its kind where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
