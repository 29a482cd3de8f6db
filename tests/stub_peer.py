"""A peer that needs no installation: it answers with the file's scores, and behaves as badly as its `model` says.

It starts a child in a session of its own that ignores SIGTERM, as serving systems do, and ignores SIGTERM itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.benchmarks.peers.assignment import Assignment
from tests.benchmarks.peers.inference import Inference

_CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # by default five: of 64 connections at once most would wait a second for their next try


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    inference: Inference
    wrong = 0.0

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/up" else 404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = [score + self.wrong for score in self.inference.scores([body["text"]])[0]]
        self._answer(200, json.dumps({"probs": scores}).encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    """`python -m tests.stub_peer`: serve as the environment says; with 2 workers or more it fails to start."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assignment = Assignment.from_environment()
    subprocess.Popen([sys.executable, "-c", _CHILD], start_new_session=True)
    if assignment.setting.workers > 1:
        sys.exit("one worker is all that there is")
    Handler.inference = Inference(assignment)
    Handler.wrong = 0.5 if "wrong" in assignment.model else 0.0
    Server(("127.0.0.1", assignment.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
