"""A local W&B server with the parts that an online run needs. Tests only."""

import base64
import gzip
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Stores all requests. `behaviour` may change at any time: "works", "fails" (always status
    500), "hangs" (accepts requests and never answers).
    """

    def __init__(self, behaviour: str = "works", takes_artifacts: bool = False):
        self.behaviour, self.takes_artifacts = behaviour, takes_artifacts
        self.requests: list[str] = []
        self.history: list[dict] = []
        self.summary: dict = {}
        self.config: dict = {}
        self.files: list[str] = []
        self.name, self.group, self.job_type, self.tags = "", "", "", []
        self.views: list[dict] = []  # reports and saved views
        self.exit_code: int | None = None
        self.ended = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        self.host = f"127.0.0.1:{self.http.server_port}"
        self.url = f"http://{self.host}"

    def graphql(self, query: str, values: dict) -> dict:
        """The response, with the fields of the query."""
        data = {}
        if "viewer" in query:
            edges = {"edges": []}
            data["viewer"] = {
                "id": "u", "entity": "local", "username": "local", "email": "", "admin": False,
                "flags": "{}", "teams": edges, "apiKeys": edges,
            }  # fmt: skip
        if "serverInfo" in query:
            data["serverInfo"] = {
                "cliVersionInfo": {"max_cli_version": "99.0.0"},
                "latestLocalVersionInfo": None,
                "features": [],
                "exposesExplicitRunIdFields": True,
            }
        if "upsertBucket" in query:
            self.config = json.loads(values.get("config") or "{}") or self.config
            self.name = values.get("displayName") or self.name
            self.tags = values.get("tags") or self.tags
            self.group = values.get("groupName") or self.group
            self.job_type = values.get("jobType") or self.job_type
            name = values.get("name") or "run"
            project = {"id": "p", "name": values.get("project"), "entity": {"id": "e", "name": "l"}}
            data["upsertBucket"] = {
                "bucket": {
                    "id": base64.b64encode(name.encode()).decode(), "name": name,
                    "displayName": name, "description": "", "config": values.get("config"),
                    "sweepName": None, "historyLineCount": 0, "project": project,
                },
                "inserted": True,
            }  # fmt: skip
        if "createRunFiles" in query:
            names = values.get("files", [])
            data["createRunFiles"] = {
                "runID": "r",
                "uploadHeaders": [],
                "files": [{"name": n, "uploadUrl": f"{self.url}/upload/{n}"} for n in names],
            }
        if re.match(r"\s*query\s+RunResumeStatus", query):
            bucket = self.bucket() if self.history else None
            data["model"] = {
                "id": "p", "name": "p", "entity": {"id": "e", "name": "l"}, "bucket": bucket,
            }  # fmt: skip
        if re.match(r"\s*query\s+ArtifactType", query):
            data["project"] = None
        if "createArtifact(" in query and not self.takes_artifacts:
            return {"errors": [{"message": "no artifacts here"}]}
        return {"data": data | self.artifact(query, values) | self.view(query, values)}

    def view(self, query: str, values: dict) -> dict:
        """The response to queries that save a report or a view. There is one project."""
        data = {}
        if "models(entityName" in query and values["entity"] == "local":
            node = {"id": "p", "name": "onenet", "entityName": "local", "createdAt": "2026-01-01"}
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            node |= {"isBenchmark": False, "user": None}
            edge = {"cursor": "c", "node": {"__typename": "Project", **node}}
            data["models"] = {"pageInfo": page, "edges": [edge]}
        elif "models(entityName" in query:
            data["models"] = None
        if "ProjectInternalId" in query:
            data["project"] = {"id": "p", "internalId": "7"}
        if "upsertView(" in query:
            self.views.append(values)
            project = {"id": "p", "name": values["projectName"], "entityName": values["entityName"]}
            data["upsertView"] = {
                "view": {
                    "id": "VGFibGVz", "type": values["type"], "name": values["name"],
                    "displayName": values["displayName"], "description": values["description"],
                    "project": project, "spec": values["spec"], "updatedAt": None,
                },
                "inserted": True,
            }  # fmt: skip
        return data

    def artifact(self, query: str, values: dict) -> dict:
        """The response to queries that send an artifact."""
        data = {}
        if "createArtifact(" in query:
            artifact = {"id": "a", "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            data["createArtifact"] = {"artifact": artifact}
        if "createArtifactManifest(" in query:
            file = {"id": "f", "uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}
            data["createArtifactManifest"] = {"artifactManifest": {"id": "m", "file": file}}
        if "createArtifactFiles(" in query:
            nodes = [
                {
                    "storagePath": file["name"], "uploadUrl": f"{self.url}/upload/{file['name']}",
                    "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": "a"},
                }
                for file in values["input"]["artifactFiles"]
            ]  # fmt: skip
            data["createArtifactFiles"] = {"files": {"edges": [{"node": node} for node in nodes]}}
        if "commitArtifact(" in query:
            data["commitArtifact"] = {"artifact": {"id": "a", "digest": "d"}}
        if "ArtifactByID" in query:
            data["artifact"] = {
                "id": "a", "artifactSequence": {"name": "detections", "project": None},
                "versionIndex": 0, "artifactType": {"name": "detections"}, "description": None,
                "metadata": None, "ttlDurationSeconds": -1, "ttlIsInherited": False, "tags": [],
                "historyStep": None, "state": "COMMITTED", "size": 1, "digest": "d",
                "commitHash": "c", "fileCount": 2, "createdAt": "2026-01-01T00:00:00Z",
                "updatedAt": None, "aliases": [],
            }  # fmt: skip
        return data

    def bucket(self) -> dict:
        """The run's data for its resume."""
        return {
            "id": "r", "name": "r", "displayName": "r", "tags": [], "notes": "", "config": "{}",
            "summaryMetrics": json.dumps(self.summary), "logLineCount": 0, "eventsLineCount": 0,
            "historyLineCount": len(self.history), "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(self.history[-1])]),
            "wandbConfig": json.dumps({"t": {"1": [1]}}),
        }  # fmt: skip

    def stream(self, payload: dict) -> None:
        """Stores what the run logs; history goes to the sender's offset."""
        for name, part in (payload.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                self.history[part["offset"] :] = lines
            elif name == "wandb-summary.json" and lines:
                self.summary = lines[-1]
        if payload.get("complete") is not None:
            self.exit_code = payload.get("exitcode")


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append(f"{self.command} {self.path}")
            if server.behaviour == "hangs":
                server.ended.wait()
                self.close_connection = True
                return
            if server.behaviour == "fails":
                self.answer({}, 500)
                return
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/graphql":
                request = json.loads(body)
                self.answer(server.graphql(request["query"], request.get("variables") or {}))
            elif self.path.endswith("/file_stream"):
                server.stream(json.loads(body))
                self.answer({"exitcode": None, "limits": {}})
            else:
                if self.command == "PUT":
                    server.files.append(self.path.removeprefix("/upload/"))
                self.answer({})

        do_GET = do_POST = do_PUT = do

        def answer(self, value: dict, status: int = 200):
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


@contextmanager
def serving(behaviour: str = "works", takes_artifacts: bool = False) -> Iterator[Server]:
    server = Server(behaviour, takes_artifacts)
    threading.Thread(target=server.http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.ended.set()
        server.http.shutdown()
        server.http.server_close()


def refusing_url() -> str:
    """A URL without a server."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
