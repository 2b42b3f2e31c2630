"""A stand-in for an OpenAI-compatible server, with faults on demand."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from echelon.language._http import Endpoint


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "no"
    raw: bytes | None = None
    """The body in place of an answer; with `cut`, the promised length is longer."""
    cut: bool = False
    reset: bool = False
    sleep_s: float = 0.0
    """Before it is answered as if nothing had been."""


Write = Callable[[dict[str, Any]], Any]
"""Body of a request → the text of the answer, or a whole choice."""
Fail = Callable[[dict[str, Any], int], Fault | None]
"""(body, how often this very body has come) → what goes wrong."""


@dataclass
class Served:
    """What a stand-in has seen."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most: int = 0
    """Requests that were open at the same time."""

    def endpoint(self, **changes: Any) -> Endpoint:
        """Asked without patience, so that tests are fast."""
        return Endpoint(self.url, **{"model": "stand-in", "wait_s": 0.004, "timeout_s": 5.0, **changes})


def last(body: Mapping[str, Any]) -> str:
    """What the user said last."""
    return str(body["messages"][-1]["content"])


def chat(text: str, reason: str | None = "stop") -> dict[str, Any]:
    """A choice of a chat."""
    return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}


@contextlib.contextmanager
def stand_in(
    write: Write = lambda body: f"said {last(body)}", fail: Fail = lambda body, n: None, port: int = 0
) -> Iterator[Served]:
    """A server in a thread; within the context, what it has seen."""
    lock, counts, open_now = threading.Lock(), dict[str, int](), [0]

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Silent."""

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(raw)
            with lock:
                served.bodies.append(body)
                served.keys.append(self.headers["Authorization"])
                served.paths.append(self.path)
                served.times.append(time.monotonic())
                counts[raw.decode()] = n = counts.get(raw.decode(), 0) + 1
                open_now[0] += 1
                served.most = max(served.most, open_now[0])
            try:
                self._answer(body, fail(body, n) or Fault())
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with lock:
                    open_now[0] -= 1

        def _answer(self, body: dict[str, Any], fault: Fault) -> None:
            time.sleep(fault.sleep_s)
            if fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            raw = fault.raw
            if raw is None:
                raw = json.dumps(self._document(body) if fault.status == 200 else {"error": {"message": fault.message}})
                raw = raw.encode()
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw) + 100 * fault.cut))
            self.end_headers()
            self.wfile.write(raw)

        def _document(self, body: dict[str, Any]) -> dict[str, Any]:
            said = write(body)
            choice = said if isinstance(said, dict) else chat(said)
            return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 3}}

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    served = Served(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
