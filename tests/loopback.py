"""A local server that answers like the Hugging Face hub and like a file archive, and fails on request.

Tests of downloads use it with the real clients, because a mocked client would only show what we believe it does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import socketserver
import threading
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE_SUFFIXES = (".safetensors", ".bin")

_REPO = "([^/]+(?:/[^/]+)?)"
_INFO = re.compile(f"/api/models/{_REPO}(?:/revision/([^/]+))?")
_TREE = re.compile(f"/api/models/{_REPO}/tree/([^/]+)")
_RESOLVE = re.compile(f"/{_REPO}/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(?=.*\d)(\d*)-(\d*)")


@dataclass(frozen=True)
class File:
    """A file to serve. The hub stores large ones on another host, named by their SHA-256."""

    data: bytes
    large: bool

    @cached_property
    def name(self) -> str:
        """The hash of hub and client for this content: SHA-256 of a large file, else that of a git blob."""
        blob = b"blob %d\0" % len(self.data) + self.data
        return hashlib.sha256(self.data).hexdigest() if self.large else hashlib.sha1(blob).hexdigest()

    def entry(self, path: str) -> dict:
        """The entry of this file in the listing of its repository."""
        entry = {"type": "file", "oid": self.name[:40], "size": len(self.data), "path": path}
        lfs = {"oid": self.name, "size": len(self.data), "pointerSize": 134}
        return entry | {"lfs": lfs} if self.large else entry


class Refusal(Exception):
    """An error response, with the headers that the hub's client reads."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self.status, self.headers = status, {key: value for key, value in headers.items() if value}
        self.body = json.dumps({"error": message}).encode()


class Server(ThreadingHTTPServer):
    """Serves until the `with` block ends; afterwards its address refuses connections, as without a network.

    `url` is the endpoint for the hub's client; `requests` lists method, path without query, and Range header. A fault applies
    to every path that contains the given one, for `times` requests (None: for ever); cut and corrupt count successful GETs.
    """

    daemon_threads = True
    # the hub's client opens eight connections at once, and one that finds the queue full waits for a second
    request_queue_size = 32

    def __init__(self):
        self.requests: list[tuple[str, str, str | None]] = []
        self.repos: dict[str, dict[str, dict[str, File]]] = {}
        self.files: dict[str, File] = {}
        self.moved: dict[str, str] = {}
        self.gated: set[str] = set()
        self._faults: list[dict] = []
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        # the client follows redirects to another host by other rules, so this is another name of the same server
        self.cdn_url = f"http://localhost:{self.server_address[1]}"

    def server_bind(self):
        """Binds without looking up the host's name, which could use the network."""
        socketserver.TCPServer.server_bind(self)

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self._thread.join()
        self.server_close()

    def add_repo(self, repo_id: str, folder: Path, revision: str = REVISION) -> str:
        """Serves a folder as the newest commit of a model repository; returns the commit."""
        paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        files = {name: File(path.read_bytes(), path.suffix in LARGE_SUFFIXES) for name, path in paths.items()}
        self.repos.setdefault(repo_id, {})[revision] = files
        self.files |= {f"/cdn/{repo_id}/{revision}/{name}": file for name, file in files.items() if file.large}
        return revision

    def add_file(self, path: str, source: Path | bytes, redirect: bool = False) -> str:
        """Serves a file, optionally through a redirect to the other host; returns its address."""
        file = File(source if isinstance(source, bytes) else source.read_bytes(), large=True)
        self.files[f"/cdn{path}" if redirect else path] = file
        if redirect:
            self.moved[path] = f"{self.cdn_url}/cdn{quote(path)}"
        return self.url + quote(path)

    def fail(self, path: str, status: int = 500, times: int | None = 1, method: str | None = None):
        """Answers requests of one method (GET, HEAD), or of any, with an error."""
        self._fault("fail", path, times, status, method)

    def cut(self, path: str, after_bytes: int = 1000, times: int | None = 1):
        """Announces the whole body but closes the connection after a part of it."""
        self._fault("cut", path, times, after_bytes, "GET")

    def corrupt(self, path: str, times: int | None = 1):
        """Flips a bit in the middle of the body."""
        self._fault("corrupt", path, times, True, "GET")

    def ignore_ranges(self, path: str, times: int | None = None):
        """Answers a request for a range with 200 and the whole file, as servers may."""
        self._fault("ignore_ranges", path, times, True, None)

    def heal(self):
        """Removes all faults."""
        self._faults.clear()

    def gate(self, repo_id: str):
        """Allows listing the repository but not reading its files, like the hub before terms are accepted."""
        self.gated.add(repo_id)

    def _fault(self, kind: str, path: str, times: int | None, value: int, method: str | None):
        left = math.inf if times is None else times
        self._faults.append({"kind": kind, "path": path, "left": left, "value": value, "method": method})

    def take(self, kind: str, path: str, method: str) -> int | None:
        """Uses the first remaining fault of a kind for a path, and returns its value; None if there is none."""
        with self._lock:
            for fault in self._faults:
                if fault["kind"] == kind and fault["left"] and fault["path"] in path and fault["method"] in (None, method):
                    fault["left"] -= 1
                    return fault["value"]
        return None

    def commit(self, repo_id: str, revision: str | None) -> tuple[str, dict[str, File]]:
        """A commit, named by its hash or as main, and its files.

        For a missing repository the hub answers anonymous clients with a bare 401, whose meaning the client guesses on https
        addresses only. Here the 401 carries a code.
        """
        if repo_id not in self.repos:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        commits = self.repos[repo_id]
        commit = list(commits)[-1] if revision in (None, "main") else revision
        if commit not in commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, commits[commit]


class _Handler(BaseHTTPRequestHandler):
    """Answers one request per connection, so that no connection outlives the server."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        """Logs nothing; see `Server.requests`."""

    def do_GET(self):
        path = urlsplit(self.path).path
        self.name = unquote(path)
        self.server.requests.append((self.command, self.name, self.headers["Range"]))
        try:
            if status := self.server.take("fail", self.name, self.command):
                raise Refusal(status, "Internal Error - We're working hard to fix this as soon as possible!")
            self._answer(path)
        except Refusal as refusal:
            self._send(refusal.status, refusal.headers, refusal.body)

    do_HEAD = do_GET

    def _answer(self, path: str):
        if self.name in self.server.files:
            return self._send_file(self.server.files[self.name], {})
        if self.name in self.server.moved:
            return self._send(302, {"Location": self.server.moved[self.name]})
        for pattern, send in ((_INFO, self._send_info), (_TREE, self._send_tree), (_RESOLVE, self._send_resolved)):
            if match := pattern.fullmatch(path):
                # unquoted only now, because a revision may contain a quoted slash
                return send(*(group and unquote(group) for group in match.groups()))
        raise Refusal(404, "Entry not found", "EntryNotFound")

    def _send_info(self, repo: str, revision: str | None):
        commit, files = self.server.commit(repo, revision)
        gated = "manual" if repo in self.server.gated else False
        info = {"id": repo, "modelId": repo, "sha": commit, "private": False, "gated": gated, "tags": []}
        self._send_json(info | {"siblings": [{"rfilename": name} for name in files]})

    def _send_tree(self, repo: str, revision: str):
        """The files of the whole tree; the clients ask for it recursively and ignore folders."""
        self._send_json([file.entry(name) for name, file in self.server.commit(repo, revision)[1].items()])

    def _send_resolved(self, repo: str, revision: str, name: str):
        commit, files = self.server.commit(repo, revision)
        if repo in self.server.gated:
            known = self.headers["Authorization"]
            reason = "you are not in the authorized list" if known else "you must be authenticated to access it"
            raise Refusal(403 if known else 401, f"Access to model {repo} is restricted and {reason}.", "GatedRepo")
        if name not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound", commit)
        file, headers = files[name], {"X-Repo-Commit": commit}
        if not file.large:
            return self._send_file(file, headers)
        headers |= {"Location": self.server.cdn_url + quote(f"/cdn/{repo}/{commit}/{name}"), "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-ETag": f'"{file.name}"', "X-Linked-Size": str(len(file.data)), "ETag": f'"{file.name}"'}
        return self._send(302, headers)

    def _send_json(self, value: dict | list):
        self._send(200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(value).encode())

    def _send_file(self, file: File, headers: dict[str, str]):
        size = len(file.data)
        headers |= {"ETag": f'"{file.name}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        match = _RANGE.fullmatch(self.headers["Range"] or "")
        if not match or self.server.take("ignore_ranges", self.name, self.command):
            return self._send(200, headers, file.data)
        first, last = (int(number) if number else None for number in match.groups())
        part = range(size)[-last:] if first is None else range(size)[first : None if last is None else last + 1]
        if not part:
            return self._send(416, {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {part[0]}-{part[-1]}/{size}"
        return self._send(206, headers, file.data[part[0] : part[-1] + 1])

    def _send(self, status: int, headers: dict[str, str], body: bytes = b""):
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body)), "Connection": "close"}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if status < 300:
            if body and self.server.take("corrupt", self.name, self.command):
                middle = len(body) // 2
                body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
            body = body[: self.server.take("cut", self.name, self.command)]
        # a client may leave without reading, such as torchvision's when it resolves a redirect
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)
