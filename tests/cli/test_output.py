from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from phiscale.cli import output


def printed(monkeypatch: pytest.MonkeyPatch, width: int) -> str:
    stream = io.StringIO()
    monkeypatch.setattr(output, "console", lambda: Console(file=stream, width=width, highlight=False))
    headers = ["network", *(f"column{index}" for index in range(8))]
    output.print_table(headers, [["efficientnet_b0", *(f"{index}00.25M" for index in range(8))]], title="t")
    return stream.getvalue()


def test_a_wide_table_goes_on_below_and_loses_no_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, 60)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 60
    assert text.count("efficientnet_b0") > 1  # each part says what its rows are
    assert re.findall(r"column\d", text) == [f"column{index}" for index in range(8)]
    assert re.findall(r"\d00\.25M", text) == [f"{index}00.25M" for index in range(8)]


def test_a_table_that_fits_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(monkeypatch, 160).count("efficientnet_b0") == 1
