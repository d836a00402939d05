"""A server on this machine that speaks the Hub's HTTP API, as far as uploads, downloads and collections need it.

It keeps repositories in memory, answers as huggingface_hub 2.4 expects it, and fails where a test says so. It has the
LFS protocol (basic and multipart), not Xet: clients need HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from local_server import running

LICENSES = {"apache-2.0", "mit", "llama3.2", "openrail", "other", "unknown"}
REQUIRED = {"task": ("type",), "dataset": ("type", "name"), "metrics": ("type", "value")}  # of a model-index


@dataclass
class Fault:
    """Mishap of the next `times` requests whose "METHOD path" matches `pattern`.

    kind: a status; "before": the connection breaks at once; "midway": in the middle of the body that the client sends;
    "after": the request is obeyed, and the answer is lost.
    """

    pattern: str
    kind: int | str
    times: int = 1


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, bytes]) -> Commit:
        history = self.branches.setdefault(branch, [])
        digest = hashlib.sha1(f"{branch} {len(history)} {title} {sorted(files)}".encode())
        history.append(Commit(digest.hexdigest(), title, files))
        return history[-1]


class HubServer(ThreadingHTTPServer):
    """Attributes that tests read and change:

    users: token -> (name, namespaces to write to); repos; collections: slug -> its JSON; objects: sha256 -> content of
    LFS; stored: sha256 of each LFS upload, in order; part_size: bytes, above which LFS uploads are multipart; faults;
    requests: "METHOD path" of each.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.RLock()
        self.users = {"hf_me": ("me", {"me", "team"}), "hf_reader": ("reader", set())}
        self.repos, self.collections, self.objects, self.parts = {}, {}, {}, {}
        self.stored, self.requests, self.faults = [], [], []
        self.part_size = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """Returns the files of a branch, without .gitattributes."""
        newest = self.repos[repo].branches[branch][-1].files
        return {name: content for name, content in newest.items() if name != ".gitattributes"}

    def titles(self, repo: str, branch: str = "main") -> list[str]:
        return [commit.title for commit in self.repos[repo].branches[branch]]

    def take_fault(self, request: str) -> int | str | None:
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, request):
                fault.times -= 1
                return fault.kind
        return None

    def handle_error(self, request, client_address):
        pass  # the client has gone


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **body):
        self.status, self.message, self.code, self.body = status, message, code, body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        pass

    def handle_any(self):
        self.url = urlsplit(self.path)
        self.route = unquote(self.url.path)
        with self.server.lock:
            self.server.requests.append(f"{self.command} {self.route}")
            fault = self.server.take_fault(self.server.requests[-1])
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "before":
            self.close_connection = True
            return
        self.body = self.read_body(length, fault == "midway")
        if fault == "midway":
            self.close_connection = True
            return
        try:
            if isinstance(fault, int):
                raise Refused(fault, f"state {fault}")
            with self.server.lock:
                status, headers, body = self.answer()
        except Refused as refused:
            status = refused.status
            headers = {"X-Error-Message": refused.message}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            body = {"error": refused.message, **refused.body}
        if fault == "after":
            self.close_connection = True
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read_body(self, length: int, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length // 2 if half else length)
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
            if half:
                return body
        self.rfile.readline()
        return body

    # ---- Who asks, and for what

    def answer(self) -> tuple[int, dict, dict | list | bytes]:
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, self.route)
            if match and self.command in method:
                found = function(self, *match.groups())
                return found if isinstance(found, tuple) else (200, {}, found)
        raise Refused(404, f"no such page: {self.route}")

    @property
    def user(self) -> tuple[str, set[str]]:
        header = self.headers.get("Authorization", "")
        if not header:
            raise Refused(401, "Invalid username or password.")
        try:
            return self.server.users[header.removeprefix("Bearer ")]
        except KeyError:
            raise Refused(401, "Invalid credentials in Authorization header") from None

    def repo(self, name: str, write: bool = False) -> Repo:
        repo, owner = self.server.repos.get(name), name.split("/")[0]
        _, namespaces = self.user if write or repo is None or repo.private else (None, set())
        if repo is None or (repo.private and owner not in namespaces):
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write and owner not in namespaces:
            raise Refused(403, "Forbidden: you must have write access to this repository")
        return repo

    def newest(self, name: str, revision: str, write: bool = False) -> Commit:
        repo = self.repo(name, write)
        for branch, history in repo.branches.items():
            for commit in reversed(history):
                if revision in (branch, commit.oid):
                    return commit
        raise Refused(404, "Invalid rev id", "RevisionNotFound")

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    # ---- Repositories

    def whoami(self):
        return {"type": "user", "name": self.user[0], "orgs": []}

    def create_repo(self):
        name, namespaces = self.user
        owner = self.json.get("organization") or name
        full = f"{owner}/{self.json['name']}"
        if owner not in namespaces:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if full in self.server.repos:
            raise Refused(409, "You already created this model repo", url=f"{self.server.url}/{full}")
        repo = self.server.repos[full] = Repo(self.json.get("visibility") == "private")
        repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return {"url": f"{self.server.url}/{full}", "name": full}

    def repo_info(self, name, revision="main"):
        commit = self.newest(name, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        return {"id": name, "sha": commit.oid, "private": self.repo(name).private, "siblings": siblings, "tags": []}

    def tree(self, name, revision, folder=None):
        return [_entry(p, c) for p, c in self.newest(name, revision).files.items() if p.startswith(folder or "")]

    def refs(self, name):
        branches = self.repo(name).branches.items()
        listed = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": h[-1].oid} for b, h in branches]
        return {"branches": listed, "converts": [], "tags": []}

    def create_branch(self, name, branch):
        repo = self.repo(name, write=True)
        if branch in repo.branches:
            raise Refused(409, f"Reference refs/heads/{branch} already exists")
        start = self.newest(name, self.json.get("startingPoint") or "main")
        repo.branches[branch] = [start]
        return {}

    # ---- Uploads

    def validate_yaml(self):
        front = re.match(r"---\n(.*?)\n---\n", self.json["content"], re.DOTALL)
        data = yaml.safe_load(front[1]) if front else {}
        errors = _metadata_errors(data)
        if errors:
            body = {"errors": [{"message": error} for error in errors], "warnings": []}
            return 400, {}, body
        return {"errors": [], "warnings": []}

    def preupload(self, name, revision):
        commit = self.newest(name, revision, write=True)
        files = []
        for file in self.json["files"]:
            lfs = file["path"].endswith(".safetensors") or b"\0" in base64.b64decode(file["sample"])
            mode = "lfs" if lfs else "regular"
            known = commit.files.get(file["path"])
            oid = None if known is None else _oid(known, lfs)
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def lfs_batch(self, name):
        self.repo(name, write=True)
        objects = []
        for wanted in self.json["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            part = self.server.part_size
            upload = {"href": f"{self.server.url}/lfs/{oid}", "header": {}}
            if part and size > part:
                number = -(-size // part)
                upload["header"] = {"chunk_size": str(part)}
                upload["header"] |= {str(n): f"{upload['href']}/{n}" for n in range(1, number + 1)}
            if oid not in self.server.objects:
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.server.url}/lfs-verify", "header": {}}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def put_object(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "content has another sha256")
        self.store(oid, self.body)
        return {}

    def put_part(self, oid, number):
        self.server.parts[oid, int(number)] = self.body
        return 200, {"ETag": hashlib.md5(self.body).hexdigest()}, {}

    def complete(self, oid):
        numbers = [part["partNumber"] for part in self.json["parts"]]
        parts = [self.server.parts.pop((oid, number)) for number in numbers]
        tags = [hashlib.md5(part).hexdigest() for part in parts]
        if tags != [part["etag"] for part in self.json["parts"]]:
            raise Refused(400, "a part has another ETag")
        if hashlib.sha256(b"".join(parts)).hexdigest() != oid:
            raise Refused(400, "content has another sha256")
        self.store(oid, b"".join(parts))
        return {}

    def store(self, oid: str, content: bytes) -> None:
        self.server.objects[oid] = content
        self.server.stored.append(oid)

    def verify(self):
        if len(self.server.objects.get(self.json["oid"], b"")) != self.json["size"]:
            raise Refused(404, "no such object")
        return {}

    def commit(self, name, revision):
        repo, files, title = self.repo(name, write=True), dict(self.newest(name, revision).files), ""
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                content = self.server.objects.get(value["oid"])
                if content is None:
                    raise Refused(400, f"LFS object {value['oid']} of {value['path']} was not uploaded")
                files[value["path"]] = content
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"unknown operation {key}")
        commit = repo.commit(revision, title, files)
        return {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.server.url}/{name}/commit/{commit.oid}"}

    # ---- Downloads

    def resolve(self, name, revision, path):
        commit = self.newest(name, revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            return 404, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, {}
        content = commit.files[path]
        headers |= {
            "ETag": f'"{_oid(content, path.endswith(".safetensors"))}"',
            "Content-Type": "application/octet-stream",
        }
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return (206 if start else 200), headers, content[int(start[1]) :] if start else content

    # ---- Collections

    def create_collection(self):
        title, owner = self.json["title"], self.json["namespace"]
        if owner not in self.user[1]:
            raise Refused(403, f"You cannot create a collection in {owner}")
        if len(self.json.get("description") or "") > 150:
            raise Refused(400, "description is longer than 150 characters")
        slug = f"{owner}/{title.lower()}-{hashlib.md5(title.encode()).hexdigest()[:24]}"
        if slug in self.server.collections:
            raise Refused(409, "Collection already exists", slug=slug)
        entry = {"slug": slug, "title": title, "owner": {"name": owner}, "items": [], "private": self.json["private"]}
        entry |= {"lastUpdated": "2026-01-01T00:00:00.000Z", "position": 0, "theme": "green", "upvotes": 0}
        self.server.collections[slug] = entry | {"description": self.json.get("description")}
        return self.server.collections[slug]

    def get_collection(self, slug):
        if slug not in self.server.collections:
            raise Refused(404, "Collection not found")
        return self.server.collections[slug]

    def add_item(self, slug):
        collection, item = self.get_collection(slug), self.json["item"]
        self.repo(item["id"])
        if any(known["id"] == item["id"] for known in collection["items"]):
            raise Refused(409, "Item already in collection")
        number = len(collection["items"])
        entry = {"_id": f"item{number}", "id": item["id"], "type": item["type"], "position": number}
        collection["items"].append(entry | {"repoType": item["type"], "note": {"text": self.json.get("note")}})
        return collection


def _oid(content: bytes, lfs: bool) -> str:
    if lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(content, False)}
    if path.endswith(".safetensors"):
        entry["lfs"] = {"oid": _oid(content, True), "size": len(content), "pointerSize": 134}
    return entry


def _metadata_errors(data: dict) -> list[str]:
    """Returns what the Hub's check of a model card would refuse."""
    errors = []
    if data.get("license", "other") not in LICENSES:
        errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    for key in ("base_model", "datasets"):
        names = data.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
                errors.append(f'"{key}" must be the id of a repository, not {name}')
    for model in data.get("model-index") or []:
        if not model.get("name"):
            errors.append('"model-index[].name" is required')
        for result in model["results"]:
            for part, keys in REQUIRED.items():
                values = result.get(part) or {}
                for value in values if isinstance(values, list) else [values]:
                    errors += [f'"{part}.{key}" is required' for key in keys if value.get(key) is None]
    return errors


MODEL = r"/api/models/([^/]+/[^/]+)"
SLUG = r"/api/collections/([^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", MODEL, _Handler.repo_info),
    ("GET", MODEL + r"/revision/([^/]+)", _Handler.repo_info),
    ("GET", MODEL + r"/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    ("GET", MODEL + r"/refs", _Handler.refs),
    ("POST", MODEL + r"/branch/([^/]+)", _Handler.create_branch),
    ("POST", MODEL + r"/preupload/([^/]+)", _Handler.preupload),
    ("POST", MODEL + r"/commit/([^/]+)", _Handler.commit),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(\w+)", _Handler.put_object),
    ("PUT", r"/lfs/(\w+)/(\d+)", _Handler.put_part),
    ("POST", r"/lfs/(\w+)", _Handler.complete),
    ("POST", r"/lfs-verify", _Handler.verify),
    ("GET HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("POST", r"/api/collections", _Handler.create_collection),
    ("GET", SLUG, _Handler.get_collection),
    ("POST", SLUG + r"/items", _Handler.add_item),
]


def hub_server() -> AbstractContextManager[HubServer]:
    """Runs a server while the context lasts."""
    return running(HubServer())
