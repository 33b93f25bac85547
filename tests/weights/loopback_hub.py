"""A Hugging Face hub and a plain file server on loopback, with the faults that a network has."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"

_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Served:
    """One file, and how its server misbehaves.

    Attributes:
        content: What is sent.
        large: Whether the hub keeps it apart, as it does with weights, and states its SHA-256.
        stated_sha256: The checksum that the hub states; None for the right one.
        stated_size: The size that the hub states; None for the right one.
        status: Answer with this HTTP status instead.
        error_code: The hub's X-Error-Code with it.
        cuts: Break the connection after so many bytes of the body, once for each entry.
        always_cut: Break it at once, every time.
        takes_ranges: Whether the middle of the file can be asked for.
        delay: Seconds until the answer.
    """

    content: bytes
    large: bool = True
    stated_sha256: str | None = None
    stated_size: int | None = None
    status: int = 200
    error_code: str | None = None
    cuts: list[int] = field(default_factory=list)
    always_cut: bool = False
    takes_ranges: bool = True
    delay: float = 0.0

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class LoopbackHub:
    """Serve ``user/repo`` files under the hub's addresses, and others under ``/plain/``.

    ``requests`` has what was asked for, as ``"GET /plain/x.pth"``; ``ranges`` the Range headers.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], Served] = {}
        self.plain: dict[str, Served] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage(self) -> str:
        """Another origin, to which the hub redirects for large files."""
        return f"http://localhost:{self._server.server_port}"

    def add(self, repo: str, name: str, content: bytes, **faults: object) -> Served:
        self.files[repo, name] = Served(content, **faults)  # type: ignore[arg-type]
        return self.files[repo, name]

    def add_plain(self, name: str, content: bytes, **faults: object) -> Served:
        self.plain[name] = Served(content, **faults)  # type: ignore[arg-type]
        return self.plain[name]

    def bodies(self) -> int:
        """How often a body was asked for."""
        return Counter(request.partition(" ")[0] for request in self.requests)["GET"]

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """Nothing: clients that gave up are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server_hub: LoopbackHub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *args: object) -> None:  # to no stderr
        pass

    def _answer(self, *, body: bool) -> None:
        hub, path = self.server_hub, unquote(self.path)
        hub.requests.append(f"{self.command} {path}")
        if path.startswith("/plain/"):
            served = hub.plain.get(path.removeprefix("/plain/"))
            self._send_file(served, body=body) if served else self._refuse(404)
        elif path.startswith("/storage/"):
            digest = path.rpartition("/")[2]
            (_, name), served = next(item for item in hub.files.items() if item[1].sha256 == digest)
            self._send_file(served, body=body, headers={"Content-Disposition": f'inline; filename="{name}";'})
        elif found := _RESOLVE.fullmatch(path):
            self._resolve(found, body=body)
        else:
            self._refuse(404)

    def _resolve(self, found: re.Match[str], *, body: bool) -> None:
        """Answer as the hub does: what it knows of the file, and for a large one where it is."""
        hub, repo = self.server_hub, found["repo"]
        if all(known != repo for known, _ in hub.files):
            return self._refuse(401, "RepoNotFound")
        if found["revision"] not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound", commit=False)
        served = hub.files.get((repo, found["file"]))
        if served is None:
            return self._refuse(404, "EntryNotFound")
        _wait(served.delay)
        if served.status != 200:
            return self._refuse(served.status, served.error_code)
        size = len(served.content) if served.stated_size is None else served.stated_size
        if not served.large:
            return self._send_file(served, body=body, headers={"X-Repo-Commit": COMMIT})
        self.send_response(302)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{served.stated_sha256 or served.sha256}"')
        self.send_header("X-Linked-Size", str(size))
        self.send_header("Location", f"{hub.storage}/storage/{served.sha256}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _refuse(self, status: int, code: str | None = None, *, commit: bool = True) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, served: Served, *, body: bool, headers: dict[str, str] | None = None) -> None:
        _wait(served.delay)
        if served.status != 200:
            return self._refuse(served.status)
        start, wanted = 0, self.headers.get("Range")
        if wanted:
            self.server_hub.ranges.append(wanted)
            if served.takes_ranges:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
        if start and start >= len(served.content):
            return self._refuse(416)
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.md5(served.content).hexdigest()}"')
        self.send_header("Content-Length", str(len(served.content) - start))
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}"
            )
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self._send_body(served, start)
        return None

    def _send_body(self, served: Served, start: int) -> None:
        end = len(served.content)
        if served.cuts or served.always_cut:
            end = min(end, start + (served.cuts.pop(0) if served.cuts else 0))
            self.close_connection = True
        self.wfile.write(served.content[start:end])
        self.wfile.flush()


def _wait(seconds: float) -> None:
    """Wait; not with time.sleep, which tests replace."""
    if seconds:
        threading.Event().wait(seconds)
