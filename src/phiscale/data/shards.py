"""Images packed into few large files: tar shards (WebDataset) and Parquet, ours and other people's.

Every image is read on its own from its place in a shard, so the order of training is as free as with single
files, memory stays bounded, and many processes may read at the same time.

    wds:PATH                  every tar below a folder, one tar, or a pattern such as train-{0000..0012}.tar
    a folder                  that `phiscale data pack` wrote, or of .tar or .parquet files and no images
    a .tar or .parquet file
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phiscale.data.decode import printable
from phiscale.data.folders import IMAGE_SUFFIXES
from phiscale.data.listing import SPLIT_NAMES, Listing, Split
from phiscale.data.parquet_images import holds_images, list_parquet
from phiscale.data.tars import list_tars
from phiscale.errors import DataError

__all__ = ["FORMAT", "INDEX", "PREFIX", "UNFINISHED", "is_packed", "list_shards", "split_in_name"]

PREFIX = "wds:"
INDEX, UNFINISHED = "index.json", "index.part.json"
FORMAT = "phiscale-shards"

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_packed(location: str | Path) -> bool:
    """Whether a location is one of those at the top of this module."""
    if str(location).startswith(PREFIX):
        return True
    path = Path(location)
    try:
        if path.is_file():
            return path.suffix == ".tar" or (path.suffix == ".parquet" and holds_images(path))
        return path.is_dir() and (_has_index(path) or bool(_loose_shards(path)))
    except (OSError, ValueError):  # a name that is too long, or holds a zero character
        return False


def list_shards(location: str | Path) -> Listing:
    """The images of a location that `is_packed`.

    Raises:
        DataError: There are no shards, one cannot be read or is not whole, or images have no label.
    """
    text = str(location)
    path = Path(text.removeprefix(PREFIX))
    if path.is_dir() and _has_index(path):
        return _list_packed(path)
    alone = [path] if path.is_file() else []
    shards = _matching(path) if text.startswith(PREFIX) else alone or _loose_shards(path)
    if not shards:
        raise DataError(f"{printable(location)} has no .tar files; give a folder or a pattern that has")
    root = path if path.is_dir() else path.parent
    splits = [
        split_in_name(shard.relative_to(root) if shard.is_relative_to(root) else shard) for shard in shards
    ]
    return _list(shards, root, splits, by_path=False)


def split_in_name(path: Path) -> Split | None:
    """The split that the name of a shard or of its folder tells.

    Examples:
        >>> split_in_name(Path("imagenet1k-validation-03.tar")), split_in_name(Path("train/0001.tar"))
        ('val', 'train')
    """
    words = re.split(r"[^a-z]+", path.with_suffix("").as_posix().lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def read_index(folder: Path) -> dict[str, Any]:
    """The index that `phiscale data pack` wrote.

    Raises:
        DataError: It is damaged, or packing was broken off.
    """
    if not (folder / INDEX).is_file():
        raise DataError(f"packing into {printable(folder)} was broken off; give the same command again")
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if content["format"] == FORMAT and all(isinstance(shard["file"], str) for shard in content["shards"]):
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{printable(folder / INDEX)} is damaged; pack the images again")


def _has_index(folder: Path) -> bool:
    if (folder / UNFINISHED).is_file():
        return True
    try:
        # Others call files so, too.
        return f'"{FORMAT}"' in (folder / INDEX).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _loose_shards(folder: Path) -> list[Path]:
    """Shards of a folder without folders and images: where there are some, those are meant."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if any(path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES for path in visible):
        return []
    tars = sorted(path for path in visible if path.suffix == ".tar")
    tables = sorted(path for path in visible if path.suffix == ".parquet")
    return tars or (tables if tables and holds_images(tables[0]) else [])


def _matching(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.rglob("*.tar"))
    found = _RANGE.search(str(path))
    if found is None:
        return [Path(name) for name in sorted(glob.glob(str(path)))]  # noqa: PTH207 - absolute patterns, too
    first, last = found.groups()
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [Path(_RANGE.sub(number, str(path), count=1)) for number in numbers]


def _list_packed(folder: Path) -> Listing:
    index = read_index(folder)
    shards = [folder / shard["file"] for shard in index["shards"]]
    for shard, about in zip(shards, index["shards"], strict=True):
        if not shard.is_file() or shard.stat().st_size != about["bytes"]:
            raise DataError(f"{printable(shard)} is missing or not of {about['bytes']} bytes; pack anew")
    return _list(shards, folder, [about["split"] for about in index["shards"]], by_path=True)


def _list(shards: Sequence[Path], root: Path, splits: Sequence[Split | None], *, by_path: bool) -> Listing:
    kinds = {shard.suffix for shard in shards}
    if kinds == {".parquet"}:
        return list_parquet(shards, root, splits, by_path=by_path)
    return list_tars(shards, root, splits, by_path=by_path)
