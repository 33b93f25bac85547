"""What a person names on the command line, as images: files, folders, shards, patterns, standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from phiscale.data.decode import printable
from phiscale.data.folders import IMAGE_SUFFIXES
from phiscale.data.packed import PackedImage
from phiscale.data.shards import is_packed, list_shards
from phiscale.errors import DataError

__all__ = ["STDIN", "expand", "images_in"]

STDIN = "-"


def expand(inputs: Sequence[str], *, stdin: Iterable[bytes] = ()) -> Iterator[str]:
    """Image paths behind command-line arguments, found as they are asked for.

    A folder gives the images in it and below it, sorted; shards the images in them; a pattern its matches
    (``**`` goes through folders); ``-`` the lines of standard input. What does not exist comes through as
    it is, so that it has its own row in the result.

    Args:
        inputs: The arguments.
        stdin: Lines of standard input.

    Raises:
        DataError: A folder has no images; said at once, before the first path.
    """
    for argument in inputs:
        if is_packed(argument):
            list_shards(argument)
        elif _is_folder(argument) and next(images_in(argument), None) is None:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"no images in {printable(argument)}; looked for {kinds}")
    return _expand(inputs, stdin)


def images_in(folder: str | Path) -> Iterator[str]:
    """Images in a folder and below it, by their suffix, sorted within each folder; hidden ones left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield str(Path(parent, name))


def _expand(inputs: Sequence[str], stdin: Iterable[bytes]) -> Iterator[str]:
    for argument in inputs:
        if argument == STDIN:
            # A file name is bytes to the system; fsdecode gives back the same bytes when it is opened.
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in stdin)
            yield from (line for line in lines if line)
        elif is_packed(argument):
            listing = list_shards(argument)
            for entry in listing.entries:
                yield PackedImage(f"{argument}/{entry.id}", listing.reader, entry.id)
        elif _is_folder(argument):
            yield from images_in(argument)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            yield from _matches(argument)
        else:
            yield argument


def _matches(pattern: str) -> Iterator[str]:
    # Not Path.glob, which takes no absolute pattern.
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    for match in matches:
        if not _is_folder(match):
            yield match
        elif "**" not in pattern:
            yield from images_in(match)
    if not matches:
        yield pattern


def _is_folder(name: str) -> bool:
    try:
        # An empty name is the present folder to pathlib; nobody means that.
        return bool(name) and Path(name).is_dir()
    except (OSError, ValueError):  # too long, a zero character, or in a folder that may not be entered
        return False
