"""A real chat server on the loopback, whose every answer is scripted: what OpenAI's protocol looks like when it fails.

with ChatServer([ok("one"), status(429, retry_after=0.05), ok("two")]) as server:
    Endpoint(server.url, "toy")
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["_Handler"], None]
Script = Sequence[Answer] | Callable[[dict[str, Any]], Answer]


def completion(text: str | None, n_prompt: int = 7, n_completion: int = 3, finish: str = "stop", **message) -> dict:
    """The body of an answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text} | message, "finish_reason": finish}
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_completion, "total_tokens": n_prompt + n_completion}
    head = {"id": "c", "object": "chat.completion", "created": 0, "model": "toy-1"}
    return head | {"choices": [choice], "usage": usage}


def ok(text: str | None, delay: float = 0.0, **fields) -> Answer:
    """An answer with this text, after `delay` seconds; fields as of `completion`."""
    return body(json.dumps(completion(text, **fields)).encode(), delay=delay)


def body(raw: bytes, code: int = 200, delay: float = 0.0, **headers: str) -> Answer:
    """These bytes, as JSON."""

    def answer(handler: _Handler) -> None:
        time.sleep(delay)
        handler.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(raw)

    return answer


def status(code: int, message: str = "no", retry_after: float | None = None) -> Answer:
    """An error of the protocol, with Retry-After in seconds."""
    headers = {} if retry_after is None else {"Retry_After": str(retry_after)}
    return body(json.dumps({"error": {"message": message, "code": code}}).encode(), code, **headers)


def drop(after: bytes = b"") -> Answer:
    """The connection breaks, without an answer or in the middle of one."""

    def answer(handler: _Handler) -> None:
        if after:
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(after) + 1000))
            handler.end_headers()
            handler.wfile.write(after)
            handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        chat_server = self.server.owner
        with chat_server.lock:
            number = len(chat_server.requests)
            request = json.loads(raw)
            chat_server.requests.append(request)
            chat_server.headers.append({name.lower(): value for name, value in self.headers.items()})
            chat_server.paths.append(self.path)
            chat_server.n_open += 1
            chat_server.most_open = max(chat_server.most_open, chat_server.n_open)
        script = chat_server.script
        answer = script(request) if callable(script) else script[min(number, len(script) - 1)]
        try:
            answer(self)
        except OSError:
            self.close_connection = True  # the client went away first, as in a timeout
        finally:
            with chat_server.lock:
                chat_server.n_open -= 1

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing; the tests read `requests` instead."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    owner: ChatServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing; a client that went away is no failure of the server."""


class ChatServer:
    """Answers request number i with `script[i]` (the last one for ever after), or with `script(request)`.

    `requests` are the bodies that came, `headers` (names in lower case) and `paths` what came with them, `most_open`
    the most at one time.
    `stop()` makes it dead, connections refused; `start()` brings it back on the same port.
    """

    def __init__(self, script: Script) -> None:
        self.script, self.lock = script, threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.n_open = self.most_open = self.port = 0
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """The base URL for a client."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Nothing; the server listens, on a free port the first time."""
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.owner, self.port = self, self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Nothing; the port is closed."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> ChatServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
