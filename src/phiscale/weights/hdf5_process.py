"""Another process that reads the HDF5 of Keras' files.

HDF5 is a C library that crashes or runs forever on some damaged files (version 2.0 on about one in a
thousand with a few wrong bytes), so another process opens the file and sends what it finds through a pipe.
If it dies, the file is refused.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from phiscale.errors import ModelDirError

__all__ = ["AGAIN", "CONFIG", "WEIGHTS", "Content", "receive"]

AGAIN = "copy or download it again"
WEIGHTS, CONFIG = "model.weights.h5", "config.json"

_CODE = """
import sys
sys.path[:] = sys.argv[2:]
from phiscale.weights.hdf5_process import _send
_send(sys.argv[1])
"""
_SECONDS, _BYTES_PER_SECOND = 30.0, 1e6
_MAX_DEPTH, _MAX_OBJECTS = 16, 100_000
_MAX_CONFIG, _MAX_NAME = 64 << 20, 1024
# Weights shrink by a tenth or so; what unpacks to many times its file was made to fill the memory.
_MAX_EXPANSION, _SLACK = 20, 1 << 20
_FILTERS = {1, 2, 3}  # deflate, shuffle, checksum; HDF5 loads a plug-in for a number that it does not know


@dataclass(kw_only=True)
class Content:
    """What the other process found.

    Attributes:
        arrays: By their path in the file.
        names: Layers' names by the path of their group.
        config: The model's config as JSON.
        numbered: Whether groups are called by class and variables by number, as Keras 3 does; in the older
            files both have their names.
    """

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    config: str | None = None
    numbered: bool = False


def receive(path: Path) -> Content:
    """Have another process read the file, and collect what it sends.

    Raises:
        ModelDirError: It found the file wrong, died of it, or did not come to an end.
    """
    entries = [entry or str(Path.cwd()) for entry in sys.path]
    command = [sys.executable, "-I", "-c", _CODE, str(path.absolute()), *entries]
    limit = _SECONDS + path.stat().st_size / _BYTES_PER_SECOND
    content = Content()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        timer = threading.Timer(limit, child.kill)
        timer.start()
        try:
            while not _take(child.stdout, content, path):
                pass
        finally:
            timer.cancel()
            child.kill()
    return content


def _take(stream: IO[bytes], content: Content, path: Path) -> bool:
    """Take one message, a line of JSON and the bytes of an array. Returns whether it was the last one."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ModelDirError(f"{path} is damaged: HDF5 crashes on it or does not come to an end; {AGAIN}")
    message: dict[str, Any] = json.loads(line)
    if "error" in message:
        raise ModelDirError(f"{path} {message['error']}")
    if "array" in message:
        array: NDArray[Any] = np.empty(message["shape"], np.dtype(message["dtype"]))
        view = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while len(view) and (count := stream.readinto(view)):  # type: ignore[attr-defined]
            view = view[count:]
        content.arrays[message["array"]] = array
    elif "name" in message:
        content.names[message["group"]] = message["name"]
    else:
        content.config, content.numbered = message["config"], message["numbered"]
        return True
    return False


def _send(path: str) -> None:
    """What the other process does: read the file and send messages, the last one an error or the end."""
    out = sys.stdout.buffer
    try:
        end = _Reader(out=out).read(Path(path))
    except ModelDirError as error:
        end = {"error": str(error)}
    except Exception as error:
        # HDF5 and zipfile fail on a damaged file with whatever its first wrong byte leads to.
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error  # without the quotes
        text = str(reason).strip().partition("\n")[0][:200] or type(error).__name__
        end = {"error": f"is truncated or damaged ({text}); {AGAIN}"}
    if "error" in end:  # it may hold a name from the file
        end = {"error": "".join(c if c.isprintable() else "?" for c in end["error"])}
    out.write(json.dumps(end).encode() + b"\n")
    out.flush()


@dataclass(kw_only=True)
class _Reader:
    """Sends what a file holds, as messages, and checks every part before it is read."""

    out: IO[bytes]
    h5py: Any = field(default_factory=lambda: importlib.import_module("h5py"))
    objects: int = 0
    budget: int = 0

    def read(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as file:
            return self._archive(file) if file.read(2) == b"PK" else self._hdf5(path, path.stat().st_size)

    def _archive(self, file: IO[bytes]) -> dict[str, Any]:
        with zipfile.ZipFile(file) as archive:
            if not {WEIGHTS, CONFIG} <= set(archive.namelist()):
                raise ModelDirError(f"is a zip archive without {CONFIG} and {WEIGHTS}, so not of Keras")
            for info in (archive.getinfo(CONFIG), archive.getinfo(WEIGHTS)):
                if info.file_size > _MAX_EXPANSION * info.compress_size + _SLACK:
                    raise ModelDirError(
                        f"claims more data than it holds ({info.filename}), so it is not read"
                    )
            if archive.getinfo(CONFIG).file_size > _MAX_CONFIG:
                raise ModelDirError(f"has a {CONFIG} of more than {_MAX_CONFIG >> 20} MiB, so it is not read")
            config, weights = archive.read(CONFIG).decode("utf-8"), archive.read(WEIGHTS)
        return {**self._hdf5(io.BytesIO(weights), len(weights)), "config": config}

    def _hdf5(self, source: Path | IO[bytes], size: int) -> dict[str, Any]:
        self.budget = _MAX_EXPANSION * size + _SLACK
        with self.h5py.File(source, "r") as file:
            root, named = file, "layer_names" in file.attrs or "layer_names0" in file.attrs
            if not named and "model_weights" in file:
                root, named = self._item(file, "model_weights", ""), True
            config = self._text(file, "model_config", _MAX_CONFIG)
            self._walk(root, "", numbered=not named)
        return {"numbered": not named, "config": config}

    def _walk(self, group: Any, path: str, *, numbered: bool) -> None:
        if path.count("/") > _MAX_DEPTH:
            raise ModelDirError("has groups within groups without end, so it is not read")
        for name in group:
            inner = f"{path}/{name}" if path else name
            self.objects += 1
            if self.objects > _MAX_OBJECTS or not name.isprintable():
                raise ModelDirError(f"has more than {_MAX_OBJECTS} parts, or odd names; {AGAIN}")
            if inner in ("optimizer", "optimizer_weights") or name in (
                "seed_generator",
                "seed_generator_state",
            ):
                continue
            item = self._item(group, name, path)
            if isinstance(item, self.h5py.Dataset):
                self._array(item, inner)
            elif isinstance(item, self.h5py.Group):
                if numbered and name == "vars" and (text := self._text(item, "name", _MAX_NAME)):
                    self._message({"group": path, "name": text})
                self._walk(item, inner, numbered=numbered)

    def _item(self, group: Any, name: str, path: str) -> Any:
        if not isinstance(group.get(name, getlink=True), self.h5py.HardLink):
            raise ModelDirError(f"has a link in place of data ({path}/{name}), which is not followed")
        return group[name]

    def _text(self, item: Any, name: str, limit: int) -> str | None:
        if name not in item.attrs:
            return None
        text = item.attrs[name]
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if not isinstance(text, str) or len(text) > limit or (limit == _MAX_NAME and not text.isprintable()):
            raise ModelDirError(f"has an attribute {name} that is no text, or a very long one; {AGAIN}")
        return text

    def _array(self, item: Any, path: str) -> None:
        self._check(item, path)
        array = np.asarray(item[()])
        if array.dtype.kind == "V":
            array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        self._message({"array": path, "dtype": array.dtype.str, "shape": item.shape})
        self.out.write(array.tobytes())

    def _check(self, item: Any, path: str) -> None:
        if item.external or item.is_virtual:
            raise ModelDirError(f"keeps data in another file ({path}), which is not opened")
        plan = item.id.get_create_plist()
        if not {plan.get_filter(index)[0] for index in range(plan.get_nfilters())} <= _FILTERS:
            raise ModelDirError(f"is packed in a way that is not read ({path}); store it plain or with gzip")
        # numpy has no bfloat16, so Keras stores it as two bytes without a meaning, and says so beside them.
        is_brain = item.dtype.str == "|V2" and item.attrs.get("dtype") == "bfloat16"
        if item.shape is None or not (is_brain or (item.dtype.kind in "fiu" and item.dtype.itemsize <= 8)):
            raise ModelDirError(f"holds {item.dtype} where numbers are expected ({path})")
        # A chunk is unpacked as a whole, and may be larger than the array.
        size = max(math.prod(item.shape), math.prod(item.chunks or ())) * item.dtype.itemsize
        self.budget -= size
        is_empty = bool(math.prod(item.shape)) and not item.id.get_storage_size()
        if self.budget < 0 or is_empty:
            raise ModelDirError(f"claims more data than it holds ({path}, {item.shape}), so it is not read")

    def _message(self, message: Mapping[str, Any]) -> None:
        self.out.write(json.dumps(message).encode() + b"\n")
