"""A hub on this machine: what the Hugging Face library asks for, and a place for checkpoints."""

import hashlib
import json
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STORAGE = "/storage"
PAGE = b"<!DOCTYPE html><title>Please log in</title>"


class Hub:
    """Serves models by id, each at one commit, and single files below `/sam/`.

    Large files lie on a storage of their own, to which the hub sends whoever asks for one.

    `asked` lists method, path and range of every request. Paths in `drops` lose their connection
    after so many bytes, once; paths in `pages` are answered with a login page, or those
    of one method, as `GET /path`; those in `spoiled`
    with one byte changed.
    """

    def __init__(self) -> None:
        self.models: dict[str, tuple[str, dict[str, bytes]]] = {}
        self.checkpoints: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.drops: dict[str, int] = {}
        self.pages: set[str] = set()
        self.spoiled: set[str] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def publish(self, hub_id: str, commit: str, folder: Path) -> None:
        """Serve the files of a folder as a model."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()
        }  # fmt: skip
        self.models[hub_id] = (commit, files)

    def got(self) -> list[str]:
        """Names of the files whose bytes were asked for, in order."""
        return [
            path.partition("/resolve/")[2].partition("/")[2] or path.rpartition("/")[2]
            for method, path, _ in self.asked if method == "GET" and not path.startswith("/api/")
        ]  # fmt: skip

    def close(self) -> None:
        """Stop listening: from now on nobody answers."""
        self.server.shutdown()
        self.server.server_close()


def is_large(name: str) -> bool:
    """Whether the hub would keep a file in its large storage, whose digest is a sha256."""
    return name.endswith((".safetensors", ".bin"))


def etag(name: str, content: bytes) -> str:
    """The digest by which the hub calls a file."""
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            raw = self.path.partition("?")[0]
            path = raw.removeprefix(STORAGE)
            if path == raw and is_large(path) and path not in hub.pages and self.redirect(path):
                return None
            hub.asked.append((self.command, path, self.headers.get("Range", "")))
            if {path, f"{self.command} {path}"} & hub.pages:
                return self.send(200, PAGE, {"Content-Type": "text/html"}, with_body)
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if api and self.knows(api[1], api[2]):
                return self.send(200, self.listing(api[1]), {}, with_body)
            if file and self.knows(file[1], file[2]):
                commit, files = hub.models[file[1]]
                if file[3] in files:
                    told = {"ETag": f'"{etag(file[3], files[file[3]])}"', "X-Repo-Commit": commit}
                    return self.send(200, files[file[3]], told, with_body)
            if path.removeprefix("/sam/") in hub.checkpoints:
                return self.send(200, hub.checkpoints[path.removeprefix("/sam/")], {}, with_body)
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)

        def redirect(self, path: str) -> bool:
            """Send on to the storage, saying what the hub knows of the file; False for others."""
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if not file or not self.knows(file[1], file[2]):
                return False
            commit, files = hub.models[file[1]]
            if file[3] not in files:
                return False
            told = {
                "Location": f"{hub.address}{STORAGE}{path}", "X-Repo-Commit": commit,
                "ETag": '"of the answer, not of the file"',
                "X-Linked-Etag": f'"{etag(file[3], files[file[3]])}"',
                "X-Linked-Size": str(len(files[file[3]])),
            }  # fmt: skip
            if self.command == "HEAD":
                hub.asked.append((self.command, path, ""))
            self.send(302, b"", told, with_body=False)
            return True

        def knows(self, hub_id: str, revision: str) -> bool:
            return hub_id in hub.models and revision in ("main", hub.models[hub_id][0])

        def listing(self, hub_id: str) -> bytes:
            commit, files = hub.models[hub_id]
            siblings = [{"rfilename": n, "size": len(c)} for n, c in files.items()]
            document = {"id": hub_id, "modelId": hub_id, "sha": commit, "siblings": siblings}
            return json.dumps(document).encode()

        def send(
            self, status: int, content: bytes, headers: dict[str, str], with_body: bool
        ) -> None:
            path = self.path.partition("?")[0].removeprefix(STORAGE)
            begin = int(re.sub(r"\D", "", self.headers.get("Range", "")) or 0)
            if path in hub.spoiled and with_body:
                content = content[:-1] + bytes([content[-1] ^ 1])
            content = content[begin:]
            self.send_response(206 if begin and status == 200 else status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                with suppress(ConnectionError):
                    self.wfile.write(content[: hub.drops.pop(path, len(content))])
            self.close_connection = True

    return Handler
