"""Plays as much of W&B's server as an upload needs: runs, rows, artifacts, files. It keeps what it was sent."""

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
    """What the server was sent.

    Attributes:
        runs: variables of the mutation that made each run, by the run's id.
        rows: by run and W&B's own step; a step that is sent again replaces the one before.
        finished: exit codes by run.
        versions: ids of artifacts by name and digest.
        made: (run, artifact).
        used: (run, artifact).
        files: names of uploaded files.
        refused: operation or last part of the address that is answered with 403.
    """

    address: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, dict[int, dict[str, Any]]] = field(default_factory=lambda: defaultdict(dict))
    finished: dict[str, int] = field(default_factory=dict)
    versions: dict[tuple[str, str], str] = field(default_factory=dict)
    made: list[tuple[str, str]] = field(default_factory=list)
    used: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    requests: int = 0
    refused: str = ""
    unknown: list[str] = field(default_factory=list)

    def answer(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The data that a GraphQL operation returns."""
        given = asked.get("input", asked)
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "UpsertBucket":
            self.runs[asked["name"]] = asked
            project = {"name": asked["project"], "entity": {"name": "team"}}
            bucket = {"id": "b-" + asked["name"], "name": asked["name"], "displayName": asked["displayName"]}
            bucket |= {"description": None, "config": asked["config"], "sweepName": None, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
        if name == "CreateArtifact":
            key = given["artifactCollectionName"], given["digest"]
            state = "COMMITTED" if key in self.versions else "PENDING"
            self.versions.setdefault(key, f"artifact{len(self.versions)}")
            artifact = {"id": self.versions[key], "state": state, "artifactSequence": {"latestArtifact": None}}
            if given["runName"]:  # an artifact that is used comes from no run that the upload knows
                self.made.append((given["runName"], key[0]))
            return {"createArtifact": {"artifact": artifact}}
        if name in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            operation = name[0].lower() + name[1:]
            file = {"id": "file", "uploadUrl": f"{self.address}/upload/manifest", "uploadHeaders": []}
            return {operation: {"artifactManifest": {"id": "manifest", "file": file}}}
        if name == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": ""}}}
        if name == "UseArtifact":
            names = {version: key[0] for key, version in self.versions.items()}
            self.used.append((given["runName"], names[given["artifactID"]]))
            return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}
        if name == "CreateArtifactFiles":
            edges = [{"node": self._file(spec["name"], spec["artifactID"])} for spec in asked["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if name == "CreateRunFiles":
            files = [self._file(path) for path in asked["files"]]
            return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}
        self.unknown.append(f"{name} {json.dumps(asked)[:600]}")
        return {}

    def _file(self, name: str, artifact: str = "") -> dict[str, Any]:
        place = f"{self.address}/upload/{name}"
        found = {"id": name, "name": name, "displayName": name, "uploadUrl": place, "uploadHeaders": []}
        return {**found, "storagePath": name, "uploadMultipartUrls": None, "artifact": {"id": artifact}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kept: Kept

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("file_stream"):
            print("STREAM", self.path, sent[:1500])
            return self._send({})
        asked = json.loads(sent)
        print(re.sub(r"\s+", " ", asked["query"])[:700], json.dumps(asked.get("variables"))[:700])
        name = re.search(r"(?:mutation|query)\s+(\w+)", asked["query"]).group(1)
        return self._send({"data": self.kept.answer(name, asked.get("variables") or {})}, name)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        print("PUT", self.path)
        self._send({})

    def do_HEAD(self) -> None:
        self._send({})

    def do_GET(self) -> None:
        print("GET", self.path)
        self._send({})

    def _send(self, answer: dict[str, Any], name: str = "") -> None:
        self.kept.requests += 1
        refused = self.kept.refused and self.kept.refused in (name, self.path.rpartition("/")[2])
        body = json.dumps(answer).encode()
        self.send_response(403 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def wandb_server() -> Iterator[Kept]:
    kept = Kept()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"kept": kept}))
    kept.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield kept
    server.shutdown()
    thread.join()
