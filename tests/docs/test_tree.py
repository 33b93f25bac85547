"""The README's tree has one line for every file of the package, and no other."""

from __future__ import annotations

from doc_blocks import ROOT, Block, blocks_of

SOURCE = ROOT / "src" / "phiscale"


def tree() -> Block:
    (block,) = [block for block in blocks_of(ROOT / "README.md") if block.text.startswith("src/phiscale/")]
    return block


def entries() -> dict[str, str]:
    """Path below src/phiscale -> what its line says; folders end in a slash."""
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in tree().text.splitlines()[1:]:
        if not line.startswith(" "):
            break
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, what = line.strip().partition(" ")
        parents = [*parents[: depth - 1], name]
        path = "".join(parents)
        assert path not in found, f"README.md lists {path} twice"
        found[path] = what.strip()
    return found


def test_every_file_has_its_line() -> None:
    listed = {path for path in entries() if path.endswith(".py")}
    there = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if path.name != "__init__.py"}
    assert sorted(there - listed) == [], "add a line to the tree in README.md"
    assert sorted(listed - there) == [], "take these out of the tree in README.md"


def test_every_folder_exists() -> None:
    folders = {path for path in entries() if path.endswith("/")}
    holding_code = {path.parent for path in SOURCE.rglob("*.py")} - {SOURCE}
    there = {f"{path.relative_to(SOURCE)}/" for path in holding_code}
    data = {"demo_data/"}
    assert folders == there | data


def test_every_line_says_what_the_file_is_for() -> None:
    assert [path for path, what in entries().items() if not what and path.endswith(".py")] == []


def test_the_other_folders_exist() -> None:
    lines = tree().text.splitlines()[1:]
    names = [line.partition(" ")[0] for line in lines if line and not line.startswith(" ")]
    assert names, "the tree ends with the folders beside src/"
    assert [name for name in names if not (ROOT / name).exists()] == []
