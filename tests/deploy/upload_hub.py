"""A Hugging Face hub on loopback that takes models: as much of its protocol as pushing and loading need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_test"


class UploadHub:
    """Attributes: ``files`` by (repository, name), ``private`` repositories, and ``paths`` asked for."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.status_of_commits = 200
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def of(self, repo: str) -> dict[str, bytes]:
        """Files of a repository by name."""
        return {name: content for (owner, name), content in self.files.items() if owner == repo}

    def __enter__(self) -> UploadHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_hub: UploadHub

    def log_message(self, *args: object) -> None:  # to no stderr
        pass

    def do_POST(self) -> None:
        path, body = self._asked()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, status=401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            return self._preupload(json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(found[1], body)
        return self._json({"error": f"no such page: {path}"}, status=404)

    def do_PUT(self) -> None:
        path, body = self._asked()
        assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
        self.server_hub.large[path.rpartition("/")[2]] = body
        self._json({})

    def do_HEAD(self) -> None:
        self._resolve(body=False)

    def do_GET(self) -> None:
        self._resolve(body=True)

    def _asked(self) -> tuple[str, bytes]:
        path = unquote(urlsplit(self.path).path)
        self.server_hub.requests.append(f"{self.command} {path}")
        if self.headers.get("Transfer-Encoding") == "chunked":
            return path, b"".join(self._chunks())
        return path, self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization'] or 'ada'}/{asked['name']}"
        if asked.get("visibility") == "private" or asked.get("private"):
            self.server_hub.private.add(repo)
        self._json({"url": f"{self.server_hub.endpoint}/{repo}"})

    def _preupload(self, asked: dict[str, Any]) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        self._json({"files": modes})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server_hub.endpoint}/upload/{item['oid']}"}}}
            for item in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, body: bytes) -> None:
        hub = self.server_hub
        if hub.status_of_commits != 200:
            return self._json({"error": "You cannot write here.\nReally."}, status=hub.status_of_commits)
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                hub.files[repo, value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                hub.files[repo, value["path"]] = hub.large[value["oid"]]
        return self._json(
            {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.endpoint}/{repo}/commit/{COMMIT}"}
        )

    def _resolve(self, *, body: bool) -> None:
        path, _ = self._asked()
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        hub = self.server_hub
        if found is None or not hub.of(found[1]):
            return self._refuse(401, "RepoNotFound")
        if found[1] in hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "RepoNotFound")
        content = hub.files.get((found[1], found[3]))
        if content is None:
            return self._refuse(404, "EntryNotFound")
        digest = hashlib.sha256(content).hexdigest()
        large = digest in hub.large
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest if large else digest[:40]}"')
        if large:
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content: object, *, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
