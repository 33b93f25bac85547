from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from phiscale import errors
from phiscale.errors import MissingDependencyError, PhiscaleError, require


def _error_classes() -> dict[str, type[PhiscaleError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, PhiscaleError) and value is not PhiscaleError
    }


@pytest.mark.parametrize("name", sorted(_error_classes()))
def test_every_error_is_also_a_builtin_one(name: str) -> None:
    # So that `except ValueError` of code that knows nothing of phiscale still works.
    bases = _error_classes()[name].__bases__
    assert bases[0] is PhiscaleError
    assert issubclass(bases[1], Exception)
    assert bases[1].__module__ == "builtins"


def test_the_docstring_draws_the_real_tree() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) \((\w+)\)", errors.__doc__ or ""))
    assert drawn == {name: cls.__bases__[1].__name__ for name, cls in _error_classes().items()}


def test_all_lists_every_error() -> None:
    assert set(errors.__all__) == {"PhiscaleError", "require", *_error_classes()}


def test_require_returns_the_module() -> None:
    assert require("json.decoder", extra="data") is sys.modules["json.decoder"]


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.inner"])
def test_require_says_how_to_install(module: str) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require(module, extra="data")
    assert str(caught.value) == "no_such_package is not installed; run: pip install 'phiscale[data]'"
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize("missing", ["something_else", "half"])
def test_require_shows_the_fault_of_an_installed_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    # "half" is also the beginning of the module's name, which must not be taken for its package.
    (tmp_path / "half_installed.py").write_text(f"import {missing}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{missing}'") as caught:
        require("half_installed", extra="data")
    assert not isinstance(caught.value, MissingDependencyError)
