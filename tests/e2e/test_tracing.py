"""Traces of a real server, as a real collector gets them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.e2e.server import Hub

HELLO = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}
TRACE = "0af7651916cd43dd8448eb211c80319c"
ANSWER = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}  # fmt: skip


class Recorder(ThreadingHTTPServer):
    """A collector and two providers in one: what came, by path."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans = []
        self.headers = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            with self.server.lock:
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in group.scope_spans:
                        self.server.spans += [(group.resource, span) for span in scope.spans]
            return self.answer(200, b"", "application/x-protobuf")
        with self.server.lock:
            self.server.headers.append((self.path, dict(self.headers)))
        if self.path.startswith("/bad"):
            return self.answer(500, b'{"error":{"message":"broken"}}')
        return self.answer(200, json.dumps(ANSWER).encode())

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def recorder():
    server = Recorder()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def start(tmp_path, recorder, **env):
    hub = Hub(tmp_path, TOKENHUB_HEALTH_PROBE_DISABLED="true", **env).start()
    for name, weight in (("bad", 9), ("good", 1)):
        provider = {"id": name, "type": "openai", "base_url": f"{recorder.url}/{name}"}
        hub.ok("POST", "/providers", provider)
        hub.ok("POST", "/models", {"id": f"m-{name}", "provider_id": name, "weight": weight})
    key = hub.ok("POST", "/apikeys", {"name": "k", "scopes": ["chat"]})["key"]
    return hub, key


def test_a_collector_gets_the_whole_trace_and_the_provider_its_span(tmp_path, recorder):
    hub, key = start(
        tmp_path, recorder, TOKENHUB_OTEL_ENABLED="true", TOKENHUB_OTEL_ENDPOINT=recorder.url,
        TOKENHUB_OTEL_SERVICE_NAME="my-hub",
    )  # fmt: skip
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    answer = hub.chat(key, HELLO, headers=headers)
    assert answer.status == 200, answer.body
    assert hub.stop() == 0, "what waits is sent before the end"
    assert "Traceback" not in hub.log.read_text()
    by_kind = {}
    for resource, span in recorder.spans:
        assert span.trace_id.hex() == TRACE
        names = {item.key: item.value.string_value for item in resource.attributes}
        assert names["service.name"] == "my-hub"
        by_kind.setdefault(span.kind, []).append(span)
    [server], [_route], clients = by_kind[2], by_kind[1], by_kind[3]
    assert server.parent_span_id.hex() == "b7ad6b7169203331"
    tried = {item.key: item.value for span in clients for item in span.attributes}
    assert tried["gen_ai.operation.name"].string_value == "chat"
    told = {got["traceparent"] for _, got in recorder.headers}
    assert told == {f"00-{TRACE}-{span.span_id.hex()}-01" for span in clients}
    paths = [path.split("/")[1] for path, _ in recorder.headers]
    assert paths == ["bad"] * (len(paths) - 1) + ["good"]
    assert len(clients) == len(paths) >= 2


def test_off_means_nothing_is_sent_anywhere(tmp_path, recorder):
    hub, key = start(tmp_path, recorder)
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    assert hub.chat(key, HELLO, headers=headers).status == 200
    hub.stop()
    assert recorder.spans == []
    assert all("traceparent" not in got for _, got in recorder.headers)


def test_a_collector_that_is_away_does_not_hold_up_requests_or_the_end(tmp_path, recorder):
    hub, key = start(
        tmp_path, recorder, TOKENHUB_OTEL_ENABLED="true",
        TOKENHUB_OTEL_ENDPOINT="http://127.0.0.1:9",
    )  # fmt: skip
    assert hub.chat(key, HELLO).status == 200
    assert hub.stop() == 0
    lines = hub.log.read_text().splitlines()
    assert all(json.loads(line)["level"] for line in lines if line.startswith("{"))


def test_without_the_extra_the_server_says_what_to_install(tmp_path):
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from tokenhub.__main__ import main; sys.exit(main([]))"
    )
    hub = Hub(tmp_path, TOKENHUB_OTEL_ENABLED="true")
    hub.start(wait=False, command=[sys.executable, "-c", program])
    assert hub.process.wait(30) == 3
    assert "pip install 'tokenhub[otel]'" in hub.log.read_text()


def test_off_loads_nothing_of_it():
    program = "import sys, tokenhub.app; print([m for m in sys.modules if 'opentelemetry' in m])"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
