from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Test processes share few cores: a deadline would measure the neighbours.
settings.register_profile("phiscale", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("phiscale")


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """The numbers of the paper and the counts that everybody can check."""
    path = Path(__file__).parent / "golden" / "published.json"
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


class _SignalStack(ctypes.Structure):
    """The kernel's `stack_t`."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def signals_on_the_ordinary_stack() -> None:
    """Take away a stack for signals that a library has set up.

    Python's handlers run on one where there is one, and after networks were quantised in this process, a
    signal there has ended it (docs/log.md).
    """
    if sys.platform == "linux":
        disable = 2
        stack = _SignalStack(None, disable, 0)
        ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None)
