"""Folders of images: one folder per class, or the same under train/, val/ and test/."""

from __future__ import annotations

import os
from pathlib import Path

from phiscale.data.decode import printable
from phiscale.data.listing import SPLIT_NAMES, Entry, FileReader, Listing, Split
from phiscale.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "list_folder"]

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".avif", ".jp2"),
        *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)

# Left behind by macOS' archive tool; it mirrors the class folders with files that are no images.
_IGNORED_FOLDERS = frozenset({"__MACOSX"})


def list_folder(root: Path) -> Listing:
    """The images below a folder, by class and, where the layout says so, by split.

    Raises:
        DataError: There are no class folders, or a folder cannot be listed.
    """
    folders, loose = _folders_and_files(root)
    if _is_split_layout(root, folders):
        parts: list[tuple[Split | None, str]] = []
        for name in folders:
            if name in SPLIT_NAMES:
                parts.append((SPLIT_NAMES[name], name))
            else:
                loose += 1
        _check_split_names(root, [name for _, name in parts])
    else:
        parts = [(None, "")]
    entries: list[Entry] = []
    empty: list[str] = []
    ignored = loose
    for split, part in parts:
        classes, files = _folders_and_files(root / part)
        ignored += files if part else 0
        for label in classes:
            folder = root / part / label
            found, passed_over = _images_below(folder)
            ignored += passed_over
            prefix = f"{part}/{label}" if part else label
            entries += [Entry(f"{prefix}/{path}", label, split) for path in sorted(found)]
            if not found:
                empty.append(prefix)
    if not entries:
        raise DataError(_no_images(root, loose))
    return Listing(
        entries=tuple(entries), reader=FileReader(root), empty_classes=tuple(empty), ignored=ignored
    )


def _is_split_layout(root: Path, folders: list[str]) -> bool:
    """Whether train/, val/ and test/ are splits and not classes (of vehicles, say)."""
    splits = [name for name in folders if name in SPLIT_NAMES and _holds_class_folders(root / name)]
    others = [name for name in folders if name not in SPLIT_NAMES]
    return bool(splits) and (not others or len(splits) >= 2)


def _holds_class_folders(folder: Path) -> bool:
    visible = [entry for entry in _scan(folder) if not entry.name.startswith(".")]
    images = any(_is_image_name(entry.name) and not _is_folder(entry) for entry in visible)
    return not images and any(_is_folder(entry) for entry in visible)


def _check_split_names(root: Path, names: list[str]) -> None:
    val = [name for name in names if SPLIT_NAMES[name] == "val"]
    if len(val) > 1:
        raise DataError(f"{printable(root)} holds {' and '.join(val)}; keep one of them for validation")


def _folders_and_files(folder: Path) -> tuple[list[str], int]:
    """Names of the sub-folders, sorted, and the number of other things."""
    folders, others = [], 0
    for entry in _scan(folder):
        if entry.name.startswith(".") or entry.name in _IGNORED_FOLDERS or not _is_folder(entry):
            others += 1
        else:
            folders.append(entry.name)
    return sorted(folders), others


def _images_below(folder: Path) -> tuple[list[str], int]:
    """Paths of the images below a class folder, relative to it, and the number of files passed over.

    Anything with an image's name is listed, also a folder or a dangling link: the scan then says what
    is wrong with it, instead of one image being missing without a word.
    """
    found: list[str] = []
    ignored = 0

    def walk(folder: Path, prefix: str, above: frozenset[str]) -> None:
        nonlocal ignored
        real = os.path.realpath(folder)
        if real in above:  # a link to a folder that contains it
            return
        for entry in _scan(folder):
            if entry.name.startswith("."):
                ignored += 1
            elif _is_image_name(entry.name):
                found.append(prefix + entry.name)
            elif _is_folder(entry):
                walk(folder / entry.name, f"{prefix}{entry.name}/", above | {real})
            else:
                ignored += 1

    walk(folder, "", frozenset())
    return found, ignored


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot list the folder {printable(folder)}: {error.strerror}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a tenth of Path's cost


def _no_images(root: Path, loose: int) -> str:
    name = printable(root)
    why = "no class folder with images" if loose == 0 else "no class folder, only loose files"
    return (
        f"{name} holds {why}; expected one folder per class ({name}/cat/1.jpg, {name}/dog/2.jpg), "
        f"or such folders under {name}/train, {name}/val and {name}/test"
    )
