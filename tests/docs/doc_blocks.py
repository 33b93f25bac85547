"""The fenced blocks of a Markdown page, and how each kind is run."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from phiscale.cli.main import main

ROOT = Path(__file__).parents[2]
RUN = ("bash", "python")

# A page's training is cut to two epochs in this process: what is shown is that the command works.
SHORT = "--set epochs=2 --set workers=0"

_FENCE = re.compile(r"^( *)(```+)([\w+-]*)(.*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_SHELL_SYNTAX = re.compile(r"[|<>&;$`*?\[\]]")
_ARROW = re.compile(r"#\s*->\s*(.+?)\s*$")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, the file name in its title, its text and the line it begins at."""

    page: Path
    language: str
    title: str | None
    text: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    blocks, opened = [], None
    content: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, content = (fence, number), []
        elif opened is not None and line.strip() == opened[0].group(2):
            _, _, language, rest = opened[0].groups()
            title = _TITLE.search(rest)
            blocks.append(
                Block(
                    page=page,
                    language=language,
                    title=title.group(1) if title else None,
                    text=textwrap.dedent("\n".join(content)) + "\n",
                    line=opened[1],
                )
            )
            opened = None
        elif opened is not None:
            content.append(line)
    assert opened is None, f"{page}: the block at line {opened and opened[1]} is never closed"
    return blocks


def commands_in(block: Block) -> list[str]:
    """The commands of a bash block, continued lines joined, comments left out."""
    joined = block.text.replace("\\\n", " ")
    lines = (" ".join(shlex.split(line, comments=True, posix=False)) for line in joined.splitlines())
    return [line for line in lines if line]


def run_page(page: Path, folder: Path) -> int:
    """Run a page's blocks in order in a folder. Returns how many there were to run.

    A block with a title is written to the file of that name; bash and python blocks run.
    """
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    ran = 0
    for block in blocks_of(page):
        if block.title is not None:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            for command in commands_in(block):
                run_command(command, folder, place=block.place)
                ran += 1
        elif block.language == "python":
            run_python(block, namespace)
            ran += 1
    return ran


def run_command(command: str, folder: Path, *, place: str) -> None:
    """Run one line of a bash block, or check that it could be run."""
    program, _, rest = command.partition(" ")
    if program == "make":
        subprocess.run(["make", "--dry-run", rest], cwd=ROOT, check=True, capture_output=True)
    elif program == "git":
        assert rest.startswith(("clone ", "lfs ")), f"{place}: nobody checks `{command}`"
    elif program == "cd" or command.startswith(("pip install ", "source ", "python -m venv ")):
        pass
    elif program == "python" and rest.startswith("examples/"):
        assert (ROOT / rest.split()[0]).is_file(), f"{place}: there is no {rest.split()[0]}"
    elif program == "phiscale" and not _SHELL_SYNTAX.search(re.sub(r"'[^']*'", "", command)):
        _run_here(shlex.split(shortened(command)), place=place)
    elif "phiscale" in command:
        _run_in_bash(shortened(command), folder, place=place)
    else:
        pytest.fail(f"{place}: nobody checks `{command}`; a bash block holds phiscale and make commands")


# Searches as small as they can be: what they find does not matter here.
SHORT_SEARCHES = {
    "coefficients": "--step 0.5 --epochs 1 --seeds 2 --confirm-seeds 2 --workers 1",
    "baseline": "--macs 1M --image-size 32 --trials 3 --generation 2 --finalists 1 --epochs 1 --workers 1",
    "family": "--macs 1M --budgets 2M --image-size 32 --trials 3 --generation 2 --finalists 1 --step 0.5 "
    "--epochs 1 --workers 1",
}


def shortened(command: str) -> str:
    """A `fit` that begins gets settings of two epochs, a search the smallest of all; the rest stays."""
    # There is no cluster here.
    command = re.sub(r" --workers \d+ --ray auto| --ray auto| --gpus-per-(trial|worker) \S+", "", command)
    if command.startswith("phiscale fit ") and "--resume" not in command:
        return f"{command} {SHORT}"
    for kind, settings in SHORT_SEARCHES.items():
        if command.startswith(f"phiscale search {kind} "):
            return f"{command} {settings}"
    return command


def _run_here(arguments: list[str], *, place: str) -> None:
    """In this process: it has imported torch already."""
    output = io.StringIO()
    with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(output):
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
    assert code in (0, None), f"{place}: `{shlex.join(arguments)}` ended with {code}\n{output.getvalue()}"


def _run_in_bash(command: str, folder: Path, *, place: str) -> None:
    program = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{program}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{place}: `{command}` ended with {done.returncode}\n{done.stderr}"


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    """Run a python block, and compare what stands behind ``# ->`` at the end of a statement.

    That is the value of an expression, or what the statement prints.
    """
    lines = block.text.splitlines()
    tree = ast.parse(block.text, filename=block.place)
    promised = {number for number, line in enumerate(lines, start=1) if _ARROW.search(line)}
    for statement in tree.body:
        last = statement.end_lineno or 0
        wanted = _ARROW.search(lines[last - 1])
        value, printed = None, io.StringIO()
        with contextlib.redirect_stdout(printed):
            if isinstance(statement, ast.Expr):
                value = eval(compile(ast.Expression(statement.value), block.place, "eval"), namespace)
            else:
                exec(compile(ast.Module([statement], []), block.place, "exec"), namespace)
        if wanted:
            found = printed.getvalue().strip() if value is None else repr(value)
            assert found == wanted.group(1), f"{block.place}: {lines[last - 1].strip()} gives {found}"
            promised.discard(last)
    assert not promised, f"{block.place}: `# ->` in lines {sorted(promised)} of the block is never checked"


def unchecked(page: Path) -> Iterator[str]:
    """Places where a command stands in a block that is not run."""
    for block in blocks_of(page):
        if block.language in RUN and block.title is None:
            continue
        for line in block.text.splitlines():
            if re.match(r"\s*(\$ *)?(phiscale|make) \w", line):
                language = block.language or "no language"
                yield f"{block.place}: `{line.strip()}` stands in a block of {language}"
