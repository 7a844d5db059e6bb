"""A stand-in for W&B's server: answers as much as an upload needs, and keeps the runs, rows, artifacts and reports."""

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Kept:
    """What clients sent to the server, and how it answers.

    Attributes:
        runs: variables of the mutation that created each run, by the run's id.
        rows: rows of each run, without W&B's own columns.
        exits: exit codes by run.
        versions: ids of artifacts by name and digest.
        made, used: pairs of a run and an artifact.
        views: variables of the mutation that created each report.
        committed: artifacts with all of their files.
        refused: operation, or last part of the address, that is answered with 403.
        silent: whether the server answers no request.
    """

    address: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    exits: dict[str, int] = field(default_factory=dict)
    versions: dict[tuple[str, str], str] = field(default_factory=dict)
    made: list[tuple[str, str]] = field(default_factory=list)
    used: list[tuple[str, str]] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    requests: int = 0
    refused: str = ""
    silent: threading.Event = field(default_factory=threading.Event)

    def answer(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The data that a GraphQL operation returns."""
        given, artifacts = asked.get("input", asked), {version: key[0] for key, version in self.versions.items()}
        match name:
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "OrganizationCoreWeaveOrganizationID":
                return {"entity": None}
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "viewer" | "GetViewer" | "GetDefaultEntity":  # the first field of a query without a name
                return {"viewer": {"id": "me", "username": "me", "entity": "team", "teams": {"edges": []}}}
            case "GetProjects":
                node = {
                    "id": "p",
                    "name": "reloss",
                    "entityName": "team",
                    "createdAt": "",
                    "isBenchmark": False,
                    "user": None,
                }
                edges = [{"cursor": "", "node": node}]
                return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}
            case "upsertView":
                self.views.append(asked)
                project = {"id": "p", "name": asked["projectName"], "entityName": asked["entityName"]}
                view = {"id": "v1", "type": "runs", "name": asked["name"], "displayName": asked["displayName"]}
                view |= {"description": asked["description"], "spec": asked["spec"], "project": project}
                return {"upsertView": {"view": {**view, "user": None, "createdAt": None, "updatedAt": None}}}
            case "UpsertBucket":
                self.runs.setdefault(asked["name"], asked)
                bucket = {"id": asked["name"], "name": asked["name"], "displayName": asked["displayName"]}
                bucket |= {"description": None, "config": asked["config"], "sweepName": None, "historyLineCount": 0}
                bucket["project"] = {"name": asked["project"], "entity": {"name": "team"}}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "CreateArtifact":
                key = given["artifactCollectionName"], given["digest"]
                version = self.versions.setdefault(key, f"artifact{len(self.versions)}")
                state = "COMMITTED" if key[0] in self.committed else "PENDING"
                if given["runName"]:  # an artifact that is only used has no run here
                    self.made.append((given["runName"], key[0]))
                return {"createArtifact": {"artifact": {"id": version, "state": state, "artifactSequence": {}}}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                manifest = {"id": "manifest", "file": self._file("manifest")}
                return {name[0].lower() + name[1:]: {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                nodes = [{"node": self._file(each["name"])} for each in asked["artifactFiles"]]
                return {"createArtifactFiles": {"files": {"edges": nodes}}}
            case "CommitArtifact":
                self.committed.append(artifacts[asked["artifactID"]])
                return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": ""}}}
            case "UseArtifact":
                self.used.append((given["runName"], artifacts[given["artifactID"]]))
                return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}
            case "CreateRunFiles":
                files = [self._file(path) for path in asked["files"]]
                return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}
        self.unknown.append(name)
        return {}

    def _file(self, name: str) -> dict[str, Any]:
        place = f"{self.address}/upload/{name}"
        found = {"id": name, "name": name, "displayName": name, "uploadUrl": place, "uploadHeaders": []}
        return {**found, "storagePath": name, "uploadMultipartUrls": None, "artifact": {"id": ""}}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """Store the rows and the exit code of a run."""
        for line in sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
            self.rows[run].append({key: value for key, value in json.loads(line).items() if key[0] != "_"})
        if sent.get("complete"):
            self.exits[run] = sent["exitcode"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kept: Kept

    def do_POST(self) -> None:
        sent = json.loads(self._read())
        if self.path.endswith("file_stream"):
            if not self._refused(""):
                self.kept.stream(self.path.split("/")[-2], sent)
            return self._send({})
        name = re.search(r"(\w+)", sent["query"].replace("mutation", "").replace("query", "", 1)).group(1)
        answer = {} if self._refused(name) else self.kept.answer(name, sent.get("variables") or {})
        return self._send({"data": answer}, name)

    def do_PUT(self) -> None:
        self._read()
        self._send({})

    def do_HEAD(self) -> None:
        self._send({})

    def _read(self) -> bytes:
        self.kept.requests += 1
        while self.kept.silent.is_set():
            threading.Event().wait(0.05)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _refused(self, name: str) -> bool:
        return bool(self.kept.refused) and self.kept.refused in (name, self.path.rpartition("/")[2])

    def _send(self, answer: dict[str, Any], name: str = "") -> None:
        body = json.dumps(answer).encode()
        self.send_response(403 if self._refused(name) else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that close the connection."""


@contextmanager
def wandb_server() -> Iterator[Kept]:
    """A server on this machine, for the length of the block."""
    kept = Kept()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"kept": kept}))
    kept.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield kept
    finally:
        kept.silent.clear()
        server.shutdown()
        server.server_close()
