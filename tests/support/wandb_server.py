"""A local W&B server with only what `wandb sync` needs; it keeps the history of every run."""

import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """runs: for each run id its history (rows), summary, exit codes in the order of upload, tags, group and name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, dict[str, Any]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def run(self, run_id: str) -> dict[str, Any]:
        return self.runs.setdefault(run_id, {"history": [], "events": 0, "summary": {}, "exits": [], "about": {}})

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client has closed the connection


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/graphql"):
            asked = json.loads(body)
            self._answer({"data": self._graphql(asked["query"], asked.get("variables") or {})})
        else:
            if self.path.endswith("/file_stream"):
                self._stream(self.server.run(self.path.split("/")[-2]), json.loads(body))
            self._answer({})

    def _graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "flowdiff", "entity": {"id": "e", "name": "me"}}
        if "UpsertBucket" in query:
            about = self.server.run(given["name"])["about"]
            about |= {key: given[key] for key in ("displayName", "groupName", "tags") if given.get(key)}
            bucket = {"id": "r", "name": given["name"], "displayName": given["name"], "config": "{}"}
            return {"upsertBucket": {"bucket": {**bucket, "project": project, "historyLineCount": 0}, "inserted": True}}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if "RunResumeStatus" in query:
            run = self.server.runs.get(given["name"])
            return {"model": {**project, "bucket": run and self._bucket(given["name"], run)}}
        if "Viewer" in query:
            viewer = {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer, "serverInfo": {"features": []}}
        return {"serverInfo": {"features": []}}

    def _bucket(self, run_id: str, run: dict[str, Any]) -> dict[str, Any]:
        counts = {"logLineCount": 0, "historyLineCount": len(run["history"]), "eventsLineCount": run["events"]}
        tails = {"historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]), "eventsTail": "[]"}
        about = {"id": "r", "name": run_id, "displayName": run_id, "tags": [], "config": "{}", "projectId": 1}
        return {**about, **counts, **tails, "summaryMetrics": json.dumps(run["summary"]), "wandbConfig": '{"t": 1}'}

    def _stream(self, run: dict[str, Any], sent: dict[str, Any]) -> None:
        files = sent.get("files") or {}
        if "wandb-history.jsonl" in files:
            lines = files["wandb-history.jsonl"]
            run["history"][lines["offset"] :] = map(json.loads, lines["content"])
        if "wandb-events.jsonl" in files:
            lines = files["wandb-events.jsonl"]
            run["events"] = lines["offset"] + len(lines["content"])
        if "wandb-summary.json" in files:
            run["summary"] = json.loads(files["wandb-summary.json"]["content"][-1])
        if "exitcode" in sent:
            run["exits"].append(sent["exitcode"])

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
