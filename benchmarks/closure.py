"""Run a script and say which packages it imported, and their bytes on disk.

    python benchmarks/closure.py REPORT.json SCRIPT [ARGUMENT ...]

Standard library and Python are left out: everybody has those. So is compiled bytecode, which Python writes by
itself.
"""

from __future__ import annotations

import json
import runpy
import sys
from importlib import metadata
from pathlib import Path


def main(report: str, arguments: list[str]) -> None:
    """Run the script as `python SCRIPT` would, then write the report."""
    # What the environment loads into every Python is nobody's import.
    before = set(sys.modules)
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    found = imported(before)
    Path(report).write_text(json.dumps(found), encoding="utf-8")


def imported(before: set[str]) -> dict[str, int]:
    """Distributions with a module that is loaded -> bytes of their files.

    Args:
        before: Modules that do not count.
    """
    # What a package is called and what it is installed as differ: PIL is pillow.
    owners = metadata.packages_distributions()
    loaded = [name for name, module in sys.modules.items() if _file(module) is not None]
    top = {name.partition(".")[0] for name in loaded if name not in before}
    names = {owner for package in top for owner in owners.get(package, ())}
    sizes = {name: size_of(metadata.distribution(name)) for name in sorted(names)}
    if "phiscale" in sizes:  # installed from its folder, it has no list of its files
        folder = _file(sys.modules["phiscale"])
        assert folder is not None
        sizes["phiscale"] = sum(_size(path) for path in folder.parent.rglob("*"))
    return sizes


def size_of(distribution: metadata.Distribution) -> int:
    """Bytes of the files of a distribution."""
    return sum(_size(Path(str(file.locate()))) for file in distribution.files or ())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() and path.suffix != ".pyc" else 0


def _file(module: object) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) else None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
