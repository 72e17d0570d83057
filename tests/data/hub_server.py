"""A stand-in for the Hub on this machine: enough of its HTTP interface for `load_dataset`.

Repositories hold files at commits. Requests for anything else are answered as the Hub answers
them: with a 404 and the header that says whether repository, revision or file is missing.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BRANCHES = ("main",)


@dataclass
class Repository:
    """Files by path at commits; `main` is the last of them.

    `cut` names files of which only half is sent before the connection ends.
    """

    commits: dict[str, dict[str, bytes]]
    cut: set[str] = field(default_factory=set)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit that a revision names, with its files."""
        commit = list(self.commits)[-1] if revision in BRANCHES else revision
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class Hub:
    """Repositories by name, and what was asked of them."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port of this machine as long as the block lasts."""

    class Handler(_Handler):
        standin = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    standin: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: Any) -> None:
        """Say nothing; requests are kept instead."""

    def _answer(self, *, body: bool) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length).decode()
        self.standin.requests.append(f"{self.command} {self.path}")
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            return self._api("/".join(parts[2:4]), parts[4:], sent)
        if parts[0] == "datasets" and len(parts) > 5 and parts[3] == "resolve":
            return self._resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]), body)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body)
        return self._error("EntryNotFound", "no such page")

    def _repository(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.standin.repositories.get(name)
        if repository is None:
            self._error("RepoNotFound", "Repository Not Found")
            return None
        found = repository.at(revision)
        if found is None:
            self._error("RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _api(self, name: str, rest: list[str], sent: str) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        found = self._repository(name, revision)
        if found is None:
            return
        commit, files = found
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in sorted(files)]
            self._json(
                {"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
            )
        elif rest[0] == "tree":
            below = "/".join(rest[2:])
            self._json(self._tree(files, below, recursive="recursive=true" in self.path.lower()))
        elif rest[0] == "paths-info":
            asked = self._asked(sent)
            everything = {e["path"]: e for e in self._tree(files, "", recursive=True)}
            self._json([everything[path] for path in asked if path in everything])
        else:
            self._error("EntryNotFound", "no such page")

    def _asked(self, sent: str) -> list[str]:
        if "json" in (self.headers.get("Content-Type") or ""):
            return list(json.loads(sent)["paths"])
        return parse_qs(sent)["paths"]

    @staticmethod
    def _tree(files: dict[str, bytes], below: str, *, recursive: bool) -> list[dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        start = f"{below}/" if below else ""
        for path, data in sorted(files.items()):
            if not path.startswith(start):
                continue
            inside = path[len(start) :].split("/")
            for depth in range(1, len(inside) if recursive else min(2, len(inside))):
                folder = start + "/".join(inside[:depth])
                mark = hashlib.sha1(folder.encode()).hexdigest()
                entries[folder] = {"type": "directory", "oid": mark, "size": 0, "path": folder}
            if recursive or len(inside) == 1:
                mark = hashlib.sha1(data).hexdigest()
                entries[path] = {"type": "file", "oid": mark, "size": len(data), "path": path}
        return list(entries.values())

    def _resolve(self, name: str, revision: str, path: str, body: bool) -> None:
        found = self._repository(name, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            self._error("EntryNotFound", "Entry not found", commit)
            return
        data = files[path]
        first = 0
        if asked := (self.headers.get("Range") or "").removeprefix("bytes="):
            first = int(asked.split("-")[0])
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data) - first))
        self.send_header("Accept-Ranges", "bytes")
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        if path in self.standin.repositories[name].cut:
            self.wfile.write(data[first : max(first, len(data) // 2)])
            self.close_connection = True
            return
        self.wfile.write(data[first:])

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, code: str, text: str, commit: str | None = None) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", text)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()
