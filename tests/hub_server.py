"""A small Hugging Face hub on loopback: a real HTTP server that speaks what the real client uses to download models.

Like the hub it lists a repository with sizes and checksums, sends large files from a second host that must not see
the token, serves byte ranges, and guards gated repositories. Unlike the hub it can be told to fail.
"""

import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

LFS = ("*.safetensors", "*.bin", "*.gguf", "*.model")
"""Files that the hub keeps in large file storage: known by SHA-256, sent from another host."""
PATIENCE = 300
"""Seconds that nothing waits in vain for; a stall ends with its test."""


def checksum(name: str, content: bytes) -> str:
    """What the hub calls a file's content: SHA-256 in large file storage, else git's SHA-1 of a blob."""
    if any(fnmatch(name, p) for p in LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """A model repository; a revision is its files."""

    revisions: dict[str, dict[str, bytes]]
    readers: set[str] | None = None
    """Tokens that may read the files of a gated repository; None is open to all."""
    base_model: str | list[str] | None = None
    """What its page says that it was made from."""
    announced: dict[str, int] = field(default_factory=dict)
    """Sizes that the listing gives instead of the true ones."""

    def commit(self, revision: str) -> str | None:
        """The 40 digits that a branch or a commit stands for."""
        commits = {hashlib.sha1(r.encode()).hexdigest(): r for r in self.revisions}
        return next((c for c, r in commits.items() if revision in (c, r)), None)

    def files(self, commit: str) -> dict[str, bytes]:
        return next(f for r, f in self.revisions.items() if self.commit(r) == commit)


@dataclass(frozen=True)
class Request:
    """One line of the server's log."""

    method: str
    path: str
    host: str
    range: str | None
    encoding: str | None
    token: str | None

    @property
    def file(self) -> str | None:
        """The file that was asked for, at the hub itself."""
        return self.path.rpartition("/")[2] if "/resolve/" in self.path else None


class Hub:
    """The server. `with Hub() as hub:` runs it on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.log: list[Request] = []
        self.cuts: dict[str, list[int]] = {}
        """File -> after how many bytes the connection is cut, one number a request; 0 is no answer at all."""
        self.stalls: dict[str, int] = {}
        """File -> after how many bytes the server falls silent."""
        self.awake = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.storage_url = f"http://localhost:{self.port}"  # another host, as the hub's storage is

    def add(self, repo_id: str, files: dict[str, bytes], revision: str = "main", **traits: object) -> None:
        """Publish a repository, or one more revision of it."""
        repo = self.repos.setdefault(repo_id, Repo({}))
        repo.revisions[revision] = files
        for name, value in traits.items():
            setattr(repo, name, value)

    def asked(self, name: str) -> list[Request]:
        """The requests for one file's content, where it is kept."""
        return [r for r in self.log if r.path.endswith("/" + name) and r.method == "GET"]

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.awake.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        host, asked, encoding = (self.headers[name] for name in ("Host", "Range", "Accept-Encoding"))
        self.hub.log.append(Request(self.command, url.path, host, asked, encoding, self.token))
        parts = [unquote(p) for p in url.path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            revision = parts[5] if parts[4:5] == ["revision"] else "main"
            self.send_listing("/".join(parts[2:4]), revision)
        elif parts[2:3] == ["resolve"]:
            self.send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        elif parts[0] == "storage":
            self.send_content("/".join(parts[2:]), self.stored(parts[1]), {"ETag": f'"{parts[1]}"'})
        else:
            self.refuse(404, "EntryNotFound", "Not Found")

    def send_listing(self, repo_id: str, revision: str) -> None:
        """What `HfApi.model_info(files_metadata=True)` reads. Gated repositories are listed for everyone."""
        repo, commit = self.find(repo_id, revision)
        if not repo or not commit:
            return
        siblings = []
        for name, content in repo.files(commit).items():
            size = repo.announced.get(name, len(content))
            sibling = {"rfilename": name, "size": size, "blobId": hashlib.sha1(content).hexdigest()}
            digest = checksum(name, content)
            if len(digest) == 64:
                siblings.append(sibling | {"lfs": {"sha256": digest, "size": size, "pointerSize": 134}})
            else:
                siblings.append(sibling | {"blobId": digest})
        answer = {"id": repo_id, "modelId": repo_id, "sha": commit, "private": False, "siblings": siblings}
        answer |= {"cardData": {"base_model": repo.base_model}} if repo.base_model else {}
        body = json.dumps(answer | {"gated": "manual" if repo.readers is not None else False}).encode()
        self.answer(200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    def send_file(self, repo_id: str, revision: str, name: str) -> None:
        """A small file, or where to find a large one."""
        repo, commit = self.find(repo_id, revision)
        if not repo or not commit:
            return
        if repo.readers is not None and self.token not in repo.readers:
            return self.refuse(403 if self.token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        content = repo.files(commit).get(name)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        digest = checksum(name, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
        if len(digest) == 64:
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"', "Content-Length": "0"}
            location = f"{self.hub.storage_url}/storage/{digest}/{name}"
            return self.answer(302, headers | linked | {"Location": location})
        self.send_content(name, content, headers)

    def send_content(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        """A file's bytes from where the client asks on, with the failure that is planned for it."""
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").split("-")[0])
        body = content[start:]
        status = 206 if self.headers["Range"] else 200
        if status == 206:
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        planned = self.hub.cuts.get(name) if self.command == "GET" else None
        cut = planned.pop(0) if planned else None
        silent_after = self.hub.stalls.get(name)
        headers = headers | {"Content-Length": str(len(body)), "Accept-Ranges": "bytes"}
        if cut == 0:
            return self.hang_up()
        self.answer(status, headers, body[: silent_after if silent_after is not None else cut])
        if silent_after is not None:
            self.hub.awake.wait(PATIENCE)
        if silent_after is not None or cut is not None:
            self.hang_up()

    def stored(self, digest: str) -> bytes:
        """A large file by its checksum."""
        revisions = [files for repo in self.hub.repos.values() for files in repo.revisions.values()]
        return next(c for files in revisions for n, c in files.items() if checksum(n, c) == digest)

    def find(self, repo_id: str, revision: str) -> tuple[Repo | None, str | None]:
        """The repository and the commit; refuses the request if either is missing, as the hub does."""
        repo = self.hub.repos.get(repo_id)
        if repo is None:  # the hub does not tell strangers what exists
            code, message = ("RepoNotFound", "Repository not found") if self.token else (None, "Invalid username")
            self.refuse(404 if self.token else 401, code, message)
            return None, None
        commit = repo.commit(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit

    def refuse(self, status: int, code: str | None, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        headers = {"X-Error-Message": message, "Content-Type": "application/json", "Content-Length": str(len(body))}
        self.answer(status, headers | ({"X-Error-Code": code} if code else {}), body)

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client went away, which some tests want it to
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass
