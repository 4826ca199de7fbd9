"""A server on this machine that answers what huggingface_hub asks of Hugging Face: for downloads, and for commits."""

import base64
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class ToyHub:
    """Repositories by address (models/owner/name, datasets/owner/name): files of each, and what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.branches: set[str] | None = set()  # besides main, of the same files; None: it makes none
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def commit(self, address: str) -> str:
        """Of a repository as it is now."""
        files = sorted(self.repositories[address].items())
        return hashlib.sha1(
            repr([(name, hashlib.sha1(content).hexdigest()) for name, content in files]).encode()
        ).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: ToyHub

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self._note(path)
        if path.startswith("/api/"):
            kind, owner, name, *rest = [*path.removeprefix("/api/").split("/"), "", ""]
            address = f"{kind}/{owner}/{name}"
            if address not in self.hub.repositories:
                self._refuse("RepoNotFound")
            elif rest[0] == "revision" and rest[1] not in {*(self.hub.branches or ()), self.hub.commit(address)}:
                self._refuse("RevisionNotFound")
            elif rest[:1] == ["tree"]:
                files = self.hub.repositories[address].items()
                self._answer([{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files])
            else:
                self._answer({"id": f"{owner}/{name}", "sha": self.hub.commit(address), "siblings": []})
            return
        before, _, after = path.strip("/").partition("/resolve/")
        address = before if before.startswith("datasets/") else f"models/{before}"
        content = self.hub.repositories.get(address, {}).get(after.partition("/")[2])
        if content is None:
            self._refuse("EntryNotFound")
            return
        headers = {"X-Repo-Commit": self.hub.commit(address), "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self._send(200, content, headers)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self._note(path)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            asked = json.loads(content)
            owner = asked.get("organization") or "alice"
            kind = f"{asked.get('type', 'model')}s"
            self.hub.private.setdefault(f"{kind}/{owner}/{asked['name']}", asked["visibility"] == "private")
            self.hub.repositories.setdefault(f"{kind}/{owner}/{asked['name']}", {".gitattributes": b""})
            self._answer({"url": f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{owner}/{asked['name']}"})
        elif "/branch/" in path and self.hub.branches is not None:
            self.hub.branches.add(path.partition("/branch/")[2])
            self._answer({})
        elif path == "/api/validate-yaml":
            assert json.loads(content)["content"].startswith("---\n")
            self._answer({})
        elif "/preupload/" in path:
            files = json.loads(content)["files"]
            told = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._answer({"files": told})
        elif "/commit/" in path:
            address = path.removeprefix("/api/").partition("/commit/")[0]
            self._commit(self.hub.repositories[address], [json.loads(line) for line in content.splitlines()])
            url = f"{self.hub.url}/{address.removeprefix('models/')}/commit/{self.hub.commit(address)}"
            self._answer({"commitUrl": url, "commitOid": self.hub.commit(address)})
        else:
            self._refuse("EntryNotFound")

    def _commit(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]

    def _note(self, path: str) -> None:
        self.hub.asked.append((self.command, path))
        self.hub.tokens.add(self.headers.get("Authorization"))

    def _refuse(self, code: str) -> None:
        told = f"no, with {self.headers.get('Authorization')}".encode()  # as a careless server might
        self._send(404, told, {"X-Error-Code": code, "X-Error-Message": told.decode()})

    def _answer(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: a test reads `asked`."""


@contextmanager
def toy_hub() -> Iterator[ToyHub]:
    """Such a server on a free port."""
    hub = ToyHub()
    with _running(type("Handler", (_Handler,), {"hub": hub})) as hub.url:
        yield hub


class _Quiet(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, breaking: str, **more: Any) -> None:
        self._breaking = breaking
        super().__init__(*arguments, **more)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2] if self.path == f"/{self._breaking}" else content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def folder_server(folder: Path, breaking: str = "") -> Iterator[str]:
    """The address of a server of the files in a folder. breaking: the file in whose middle connections break."""
    with _running(lambda *arguments: _Quiet(*arguments, directory=str(folder), breaking=breaking)) as url:
        yield url


@contextmanager
def _running(handler: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
