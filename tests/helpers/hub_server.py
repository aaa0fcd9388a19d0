"""A stand-in for the Hugging Face hub on this machine: the routes by which huggingface_hub downloads and uploads."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import yaml

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens: of one who may write, and of one who may not."""


class Stored(NamedTuple):
    """A file of a repository.

    Attributes:
        content: what is served.
        etag: SHA-256 in LFS, otherwise the SHA-1 of git. It need not belong to the content.
        is_lfs: whether it is in LFS, as the hub stores safetensors.
    """

    content: bytes
    etag: str
    is_lfs: bool


def stored(name: str, content: bytes) -> Stored:
    """Return a file as the hub would store it."""
    if name.endswith((".safetensors", ".bin")):
        return Stored(content, hashlib.sha256(content).hexdigest(), True)
    return Stored(content, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), False)


class Repository:
    """Commits of a repository, and the names of some of them.

    Args:
        files: name -> file of the first commit.
        is_gated: whether files are refused.
    """

    def __init__(self, files: dict[str, Stored], is_gated: bool = False) -> None:
        self.commits: dict[str, dict[str, Stored]] = {}
        self.names: dict[str, str] = {}
        self.is_gated = is_gated
        self.commit(files)

    def commit(self, files: dict[str, Stored], branch: str = "main") -> str:
        """Add files to a branch; returns the commit."""
        before = self.commits.get(self.names.get(branch, ""), {})
        commit = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[commit] = before | files
        self.names[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch, tag or commit."""
        revision = self.names.get(revision, revision)
        return revision if revision in self.commits else None


class RefusedError(Exception):
    """An answer other than 200: status, the hub's code for the error, and what it says."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class HubServer(ThreadingHTTPServer):
    """Serve repositories; use it as a context manager.

    Attributes:
        repositories: OWNER/NAME -> repository.
        requests: method and path of all requests so far.
        uploads: SHA-256 -> content that was sent to LFS.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answer one request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:  # noqa: N802
        self.answer()

    def do_GET(self) -> None:  # noqa: N802
        self.answer()

    def do_POST(self) -> None:  # noqa: N802
        self.answer()

    def do_PUT(self) -> None:  # noqa: N802
        self.answer()

    def answer(self) -> None:
        """Find the route of the request's path, and send its answer."""
        url = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {unquote(url.path)}")
        body = self.read_body()
        for method, pattern, route in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and self.command in method:
                try:
                    return route(self, body, *map(unquote, match.groups()))
                except RefusedError as refused:
                    headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
                    text = json.dumps({"error": str(refused)}).encode()
                    return self.send(text, refused.status, {name: text for name, text in headers.items() if text})
        self.send(b"", 404)

    def read_body(self) -> bytes:
        """Read what the client sends, in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send an answer; its content is left out for HEAD."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value: Any) -> None:
        """Send an answer of JSON."""
        self.send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def find(self, name: str, revision: str = "main") -> tuple[Repository, str]:
        """Return a repository and a commit of it."""
        if name not in self.server.repositories:
            raise RefusedError(401, "RepoNotFound", "Invalid username or password.")
        repository = self.server.repositories[name]
        commit = repository.find(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def check_writer(self) -> None:
        """Refuse who may not write."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (WRITER, READER):
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        if token == READER:
            raise RefusedError(403, message="You don't have the rights to create a model under this namespace")

    def describe(self, body: bytes, name: str, revision: str = "main") -> None:
        repository, commit = self.find(name, revision)
        siblings = [{"rfilename": file} for file in repository.commits[commit]]
        self.send_json({"id": name, "sha": commit, "private": False, "siblings": siblings})

    def list_files(self, body: bytes, name: str, revision: str) -> None:
        repository, commit = self.find(name, revision)
        files = []
        for path, file in repository.commits[commit].items():
            size = len(file.content)
            lfs = {"lfs": {"oid": file.etag, "size": size, "pointerSize": 134}} if file.is_lfs else {}
            files.append({"type": "file", "path": path, "size": size, "oid": file.etag[:40], **lfs})
        self.send_json(files)

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        """Send a file; one in LFS lies on another host, as on the hub."""
        repository, commit = self.find(name, revision)
        if repository.is_gated:
            raise RefusedError(403, "GatedRepo", f"Access to model {name} is restricted")
        file = repository.commits[commit].get(path)
        if file is None:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"'}
        if not file.is_lfs:
            return self.send(file.content, headers=headers)
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        headers["Location"] = f"http://localhost:{self.server.server_port}/lfs?{name}/{commit}/{path}"
        self.send(b"", 302, headers)

    def send_large(self, body: bytes) -> None:
        owner, name, commit, path = urlsplit(self.path).query.split("/", 3)
        self.send(self.server.repositories[f"{owner}/{name}"].commits[commit][path].content)

    def create(self, body: bytes) -> None:
        self.check_writer()
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name == "org/cut":
            return self.cut(body)
        if name in self.server.repositories:
            text = {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}
            return self.send(json.dumps(text).encode(), 409)
        self.server.repositories[name] = Repository({})
        self.send_json({"url": f"{self.server.address}/{name}"})

    def validate_card(self, body: bytes) -> None:
        head = json.loads(body)["content"].split("---\n")[1]
        try:
            assert isinstance(yaml.safe_load(head), dict)
        except yaml.YAMLError as error:
            self.send(json.dumps({"errors": [{"message": f"bad YAML: {error}"}]}).encode(), 400)
        else:
            self.send_json({"errors": [], "warnings": []})

    def choose_store(self, body: bytes, name: str, revision: str) -> None:
        self.check_writer()
        self.find(name, revision)
        modes = {True: "lfs", False: "regular"}
        self.send_json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": modes[file["path"].endswith(".safetensors")],
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        )

    def plan_upload(self, body: bytes, name: str) -> None:
        self.check_writer()
        href = f"{self.server.address}/upload/"
        objects = [
            {**wanted, "actions": {"upload": {"href": href + wanted["oid"]}}} for wanted in json.loads(body)["objects"]
        ]
        self.send_json({"transfer": "basic", "objects": objects})

    def receive(self, body: bytes, oid: str) -> None:
        self.server.uploads[oid] = body
        self.send(b"")

    def commit(self, body: bytes, name: str, revision: str) -> None:
        self.check_writer()
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = stored(value["path"], base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                files[value["path"]] = Stored(self.server.uploads[value["oid"]], value["oid"], True)
        commit = self.find(name)[0].commit(files, revision)
        self.send_json({"commitUrl": f"{self.server.address}/{name}/commit/{commit}", "commitOid": commit})

    def cut(self, body: bytes) -> None:
        """Close the connection without an answer."""
        self.close_connection = True


ID = r"([^/]+/[^/]+)"
ROUTES: tuple[tuple[tuple[str, ...], str, Any], ...] = (
    (("GET",), "/api/models/org/cut/.*", Handler.cut),
    (("GET",), f"/api/models/{ID}", Handler.describe),
    (("GET",), f"/api/models/{ID}/revision/([^/]+)", Handler.describe),
    (("GET",), f"/api/models/{ID}/tree/([^/]+)", Handler.list_files),
    (("GET", "HEAD"), f"/{ID}/resolve/([^/]+)/(.+)", Handler.resolve),
    (("GET",), "/lfs", Handler.send_large),
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate_card),
    (("POST",), f"/api/models/{ID}/preupload/([^/]+)", Handler.choose_store),
    (("POST",), rf"/{ID}\.git/info/lfs/objects/batch", Handler.plan_upload),
    (("PUT",), "/upload/([0-9a-f]+)", Handler.receive),
    (("POST",), f"/api/models/{ID}/commit/([^/]+)", Handler.commit),
)
"""Methods, pattern of the path, and what answers; see the source of huggingface_hub 2.4."""
