"""A server of the OpenAI-compatible API on this machine, whose every answer a test decides."""

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from local_server import running

DROP = object()  # the connection breaks in the middle of an answer


class ChatServer(ThreadingHTTPServer):
    """Calls `behave(number, text, body)` for each completion; it returns text, a status, `DROP`, or (status, body).

    Attributes:
        bodies: of all requests, as sent; headers: of these, with names in lower case.
    """

    daemon_threads = True

    def __init__(self, behave: Callable):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave, self.lock = behave, threading.Lock()
        self.bodies, self.headers = [], []
        self.at_work = self.most_at_work = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass  # the client has gone


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._send(200, {"object": "list", "data": []})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.at_work += 1
            server.most_at_work = max(server.most_at_work, server.at_work)
        try:
            answer = server.behave(number, body["messages"][0]["content"], body)
        finally:
            with server.lock:
                server.at_work -= 1
        if answer is DROP:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": "x", "choices": [')
            self.close_connection = True
        elif isinstance(answer, tuple):
            self._send(*answer)
        elif isinstance(answer, int):
            self._send(answer, {"error": {"message": f"state {answer}", "code": answer}})
        else:
            self._send(200, completion(answer))

    def _send(self, status: int, body) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "1")  # so that tests need not wait for the next try
        self.end_headers()
        self.wfile.write(data)


def completion(text: str | None, finish_reason: str = "stop") -> dict:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice], "usage": usage}


def chat_server(behave: Callable) -> AbstractContextManager[ChatServer]:
    """Runs a server while the context lasts."""
    return running(ChatServer(behave))
