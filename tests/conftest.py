from __future__ import annotations

import json
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
