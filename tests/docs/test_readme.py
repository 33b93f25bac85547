"""Every command and every line of Python in README and documentation runs.

Each page has a folder of its own with `photos/` (three classes of twelve made-up images of 64 px),
`new-photos/` and, unless the page trains it, an untrained model in `model/`. Its blocks run in order. Three
things are not done in full: a `phiscale fit` gets settings of two epochs (`doc_blocks.SHORT`), a `make`
target is looked up with --dry-run, and commands of set-up (pip, git, cd) are left out.
"""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest
from doc_blocks import ROOT, blocks_of, commands_in, run_command, run_page, run_python, unchecked
from made_photos import CLASSES, make_photo, make_photos

import phiscale as ps
from phiscale.cli.main import app
from phiscale.families import list_specs

README = ROOT / "README.md"
DOCS = ROOT / "docs"
# Records of runs that took up to hours: their commands are history.
RECORDS = {DOCS / "results.md", DOCS / "fashion-study.md", DOCS / "log.md"}
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(set(DOCS.rglob("*.md")) - RECORDS)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of the classes in photos/, small enough to be quick."""
    spec = ps.compound_scale(ps.get_spec("efficientnet_b0"), phi=-6.0)
    net = ps.create_model(spec, num_classes=len(CLASSES), image_size=64)
    preprocess = ps.Preprocess.for_size(64)
    return ps.save(
        net,
        tmp_path_factory.mktemp("untrained"),
        classes=list(CLASSES),
        preprocess=preprocess,
        # As training notes it, for evaluation to find the held-out images.
        provenance={"data": {"location": "photos", "val_fraction": 0.2, "seed": 0, "split_file": None}},
    )


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_photos(tmp_path / "photos")
    (tmp_path / "new-photos").mkdir()
    for index in range(3):
        make_photo(random.Random(index), (128, 128, 128), 80).save(tmp_path / "new-photos" / f"{index}.jpg")
    monkeypatch.chdir(tmp_path)
    # The cache of decoded images belongs to the test.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_runs(page: Path, workspace: Path, untrained: Path) -> None:
    if "--out model" not in page.read_text(encoding="utf-8"):
        shutil.copytree(untrained, workspace / "model")
    run_page(page, workspace)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_command_stands_where_it_is_not_run(page: Path) -> None:
    assert list(unchecked(page)) == []


def test_the_readme_shows_the_main_job() -> None:
    shown = [c for block in blocks_of(README) if block.language == "bash" for c in commands_in(block)]
    for wanted in ("make demo", "make test", "phiscale fit ", "phiscale evaluate ", "phiscale predict "):
        assert any(command.startswith(wanted) for command in shown), f"README.md does not show `{wanted}`"
    (example,) = [block for block in blocks_of(README) if block.language == "python"]
    assert len([line for line in example.text.splitlines() if line.strip()]) <= 12
    assert "# ->" in example.text


def test_the_command_table_names_every_command() -> None:
    text = README.read_text(encoding="utf-8")
    listed = re.findall(r"^\| `phiscale (\w+)", text, flags=re.MULTILINE)
    registered = [command.callback.__name__ for command in app.registered_commands if command.callback]
    registered += [
        str(group.typer_instance.info.name) for group in app.registered_groups if group.typer_instance
    ]
    assert sorted(listed) == sorted(registered)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_networks_that_are_named_exist(page: Path) -> None:
    names = set(re.findall(r"\b((?:efficientnet|mobilenet|resnet)_?(?:b|l|lite|v)?\d+)\b", page.read_text()))
    assert names <= set(list_specs())


# ------------------------------------------------------------------------ the checker can say no


def page_of(text: str, folder: Path) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("doc_blocks.ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 + 1  # -> 3", "1 \\+ 1"),
        ("print('a')  # -> b", "print"),
        ("x = 2  # -> 2", "x = 2"),
        ("if True:\n    print(1)  # -> 2", "print"),
        ("if True:\n    1  # -> 1\n    2", "never checked"),
    ],
)
def test_a_wrong_value_is_found(code: str, message: str, elsewhere: Path) -> None:
    (block,) = blocks_of(page_of(f"```python\n{code}\n```\n", elsewhere))
    with pytest.raises(AssertionError, match=message):
        run_python(block, {})


@pytest.mark.parametrize(
    "command",
    [
        "phiscale scale efficientnet_b0 --macs none",
        "phiscale no-such-command",
        "phiscale models | grep no_such_network",
        "curl somewhere",
        "python examples/no_such_file.py",
    ],
)
def test_a_wrong_command_is_found(command: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_command(command, tmp_path, place="here:1")


def test_a_command_in_another_block_is_found(elsewhere: Path) -> None:
    page = page_of("```\nphiscale models\n```\n\n```text\n$ make demo\n```\n", elsewhere)
    assert len(list(unchecked(page))) == 2
