"""A W&B server of our own on this machine: what is sent to it is kept as the real one would, for tests to look at."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class ServerRun:
    """A run as the server has it."""

    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)  # group, job type, tags
    exit_codes: list[int] = field(default_factory=list)


@dataclass
class Server:
    """What has arrived."""

    url: str = ""
    runs: dict[str, ServerRun] = field(default_factory=dict)
    artifacts: list[tuple[str, str]] = field(default_factory=list)  # type and name
    requests: int = 0
    refuse_history: bool = False

    def graphql(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        if name == "UpsertBucket":
            return self._upsert(given)
        if name == "RunResumeStatus":
            return {"model": {**PROJECT, "bucket": self._state(given["name"])}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/files/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact":
            found = given["input"]
            self.artifacts.append((found["artifactTypeName"], found["artifactCollectionName"]))
            latest = {"latestArtifact": {"id": "a", "versionIndex": 0}}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": latest}}}
        return {}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(given["name"], ServerRun())
        if given.get("config"):
            run.config = {key: entry["value"] for key, entry in json.loads(given["config"]).items()}
        names = {"groupName": "group", "jobType": "job_type", "tags": "tags", "displayName": "name"}
        run.about |= {names[key]: value for key, value in given.items() if key in names and value is not None}
        bucket = {"id": "id", "name": given["name"], "displayName": given["name"], "project": PROJECT}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}

    def _state(self, name: str) -> dict[str, Any] | None:
        if name not in self.runs:
            return None
        run = self.runs[name]
        counts = {"historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]), "eventsTail": "[]"}
        config = json.dumps({key: {"value": value} for key, value in run.config.items()})
        texts = {"summaryMetrics": json.dumps(run.summary), "config": config, "wandbConfig": '{"t": 1}'}
        return {
            "id": "id",
            "name": name,
            "displayName": name,
            "tags": run.about.get("tags", []),
            **counts,
            **tails,
            **texts,
        }

    def stream(self, name: str, content: dict[str, Any]) -> None:
        run = self.runs.setdefault(name, ServerRun())
        for file, chunk in (content.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                run.history[chunk["offset"] :] = [json.loads(line) for line in chunk["content"]]
            elif file == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if content.get("complete"):
            run.exit_codes.append(int(content["exitcode"]))


PROJECT = {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}}


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Nothing on the terminal."""

        def do_PUT(self) -> None:
            self._body()
            self._answer({})

        def do_POST(self) -> None:
            body = self._body()
            server.requests += 1
            if self.path == "/graphql":
                content = json.loads(body)
                name = content.get("operationName") or content["query"].split("(")[0].split()[1]
                self._answer({"data": server.graphql(name, content.get("variables") or {})})
            elif self.path.endswith("/file_stream"):
                content = json.loads(body)
                refused = server.refuse_history and "wandb-history.jsonl" in (content.get("files") or {})
                if not refused:
                    server.stream(self.path.split("/")[-2], content)
                self._answer({}, 403 if refused else 200)
            else:
                self._answer({})

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _answer(self, content: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a port of this machine, until the block ends."""
    server = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
