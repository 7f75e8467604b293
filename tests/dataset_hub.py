"""The small hub on loopback with data sets: what the real library asks for to read one, besides models."""

import hashlib
import json
from urllib.parse import unquote, urlsplit

from hub_server import Handler, Hub, Request, checksum


class DatasetHub(Hub):
    """The server. A data set is published under `datasets/<its id>`."""

    def __init__(self) -> None:
        super().__init__()
        self.server.RequestHandlerClass = type("BoundDatasetHandler", (DatasetHandler,), {"hub": self})


class DatasetHandler(Handler):
    """Answers one connection."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        parts = [unquote(p) for p in path.strip("/").split("/")]
        is_file = parts[0] == "datasets" and parts[3:4] == ["resolve"]
        if not is_file and parts[:2] != ["api", "datasets"]:
            return super().do_GET()
        self.token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        self.hub.log.append(Request(self.command, path, self.headers["Host"], self.headers["Range"], None, self.token))
        repo_id = "/".join(["datasets", *parts[1:3]] if is_file else ["datasets", *parts[2:4]])
        if is_file:
            return self.send_file(repo_id, parts[4], "/".join(parts[5:]))
        if parts[4:5] == ["tree"]:
            return self.send_tree(repo_id, parts[5], "/".join(parts[6:]))
        if parts[4:] in ([], ["revision", parts[-1]]):
            return self.send_listing(repo_id, parts[-1] if parts[4:] else "main")
        return self.refuse(404, "EntryNotFound", "Not Found")

    def send_tree(self, repo_id: str, revision: str, folder: str) -> None:
        """Files and folders in a folder, or with `recursive` below it."""
        repo, commit = self.find(repo_id, revision)
        if not repo or not commit:
            return
        inside = [e for e in entries(repo.files(commit)) if e["path"].startswith(f"{folder}/" if folder else "")]
        if folder and not inside:
            return self.refuse(404, "EntryNotFound", f"{folder} does not exist")
        depth = len(folder.split("/")) if folder else 0
        if "recursive=true" not in self.path.lower():
            inside = [e for e in inside if e["path"].count("/") == depth]
        self.send_json(inside)

    def send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.answer(200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    def send_content(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        """Ranges with an end, too, as a reader of a stream asks for them."""
        asked = self.headers["Range"]
        if not asked or asked.endswith("-"):
            return super().send_content(name, content, headers)
        start, end = map(int, asked.removeprefix("bytes=").split("-"))
        body = content[start : end + 1]
        ranges = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(content)}", "Accept-Ranges": "bytes"}
        self.answer(206, headers | ranges | {"Content-Length": str(len(body))}, body)


def entries(files: dict[str, bytes]) -> list[dict[str, object]]:
    """Files and the folders that they are in, as the hub lists them."""
    folders = {"/".join(name.split("/")[: i + 1]) for name in files for i in range(name.count("/"))}
    found: list[dict[str, object]] = [
        {"type": "directory", "path": folder, "size": 0, "oid": hashlib.sha1(folder.encode()).hexdigest()}
        for folder in sorted(folders)
    ]
    for name, content in files.items():
        entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        digest = checksum(name, content)
        lfs = {"lfs": {"oid": digest, "size": len(content), "pointerSize": 134}} if len(digest) == 64 else {}
        found.append(entry | lfs)
    return found
