"""A stand-in for a large model: a real OpenAI-compatible HTTP endpoint whose answer is an echo, and says so.

`python -m cli.demo.cloud PORT` answers `POST /v1/chat/completions` on loopback. A demo machine has no GPU; everything
in front of this endpoint (local API, gateway, mutual TLS) is the real thing.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = request["messages"][-1]["content"]
        message = {"role": "assistant", "content": f"(an echo stands for the large model) You asked: {asked}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        answer = {"id": "demo", "object": "chat.completion", "created": 0, "model": request["model"]}
        body = json.dumps({**answer, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Echo).serve_forever()
