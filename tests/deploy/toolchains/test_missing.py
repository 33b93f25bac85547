"""A toolchain that is not installed is named with the command that installs it, and leaves nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from networks import MBCONV, make_model

import phiscale as ps
from phiscale.deploy.export_store import Format
from phiscale.deploy.exporters.toolchain import get_toolchain
from phiscale.errors import MissingDependencyError

PACKAGES: dict[Format, str] = {
    "executorch": "executorch",
    "litert": "litert_torch",
    "coreml": "coremltools",
}


@pytest.mark.parametrize("format", PACKAGES)
def test_export(format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: A002
    model = make_model(tmp_path / "model", MBCONV)
    package = PACKAGES[format]
    # With those of its modules that another test has imported.
    loaded = [name for name in sys.modules if name.startswith(f"{package}.")]
    for name in (package, *loaded):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"run: pip install 'phiscale\[{format}\]'"):
        ps.export(model.path, format)
    assert not list((model.path / "exports").iterdir())


@pytest.mark.parametrize("format", PACKAGES)
def test_a_toolchain_is_described_without_being_imported(format: Format) -> None:  # noqa: A002
    before = set(sys.modules)
    assert get_toolchain(format).precisions == ("fp32",)
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} - {"phiscale"}
