"""A server on this machine that speaks HTTP as archives do, and fails as they do."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Fault = Callable[["Handler", bytes], None]


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        address = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        query = dict(parse_qsl(address.query))
        self.server.requests.append(Request(self.command, address.path, query, dict(self.headers), body))
        content = self.content(address.path, query, body)
        if self.server.faults[address.path]:
            self.server.faults[address.path].popleft()(self, content or b"")
        elif content is None:
            self.send(404, b"{}")
        else:
            self.serve(content)

    def content(self, path: str, query: dict[str, str], body: Any) -> bytes | None:
        if path in self.server.services:
            return json.dumps(self.server.services[path](query, body)).encode()
        return self.server.files.get(path)

    def serve(self, content: bytes) -> None:
        """The whole file, or what a valid Range asks for (RFC 9110, 14)."""
        tag = self.server.tag(content)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not wanted or self.headers.get("If-Range", tag) != tag:
            self.send(200, content, ETag=tag)
            return
        first = int(wanted[1])
        if first >= len(content):
            self.send(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
        else:
            self.send(206, content[first:], **{"ETag": tag, "Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"})

    def send(self, status: int, content: bytes, *, sent: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:sent])
        self.close_connection = sent is not None

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """`files` by path, `services` (functions of query and body that answer JSON), and `faults`: what the next requests meet."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.services: dict[str, Callable[[dict[str, str], Any], Any]] = {}
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.requests: list[Request] = []
        self.tag: Callable[[bytes], str] = lambda content: f'"{hashlib.sha256(content).hexdigest()[:8]}"'

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has left is what these tests are about."""

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]


def status(code: int, **headers: str) -> Fault:
    return lambda handler, _: handler.send(code, b"try later", **{name.replace("_", "-"): value for name, value in headers.items()})


def cut(after: int) -> Fault:
    """The length of the whole body is promised, the connection ends after some bytes."""

    def fault(handler: Handler, content: bytes) -> None:
        handler.send(200, content, sent=after, ETag=handler.server.tag(content))

    return fault


def cut_rest(after: int) -> Fault:
    """The same of an answer to a range."""

    def fault(handler: Handler, content: bytes) -> None:
        first = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        said = {"ETag": handler.server.tag(content), "Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        handler.send(206, content[first:], sent=after, **said)

    return fault


def other(content: bytes, **headers: str) -> Fault:
    """Something else in place of the file."""
    return lambda handler, _: handler.send(200, content, **headers)


def silence(handler: Handler, _: bytes) -> None:
    """No answer at all."""
    handler.close_connection = True


def endless(handler: Handler, _: bytes) -> None:
    """Chunk after chunk, of a length that nobody states."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    _until_left(handler, b"40000\r\n" + bytes(0x40000) + b"\r\n")


def dripping(at: str) -> Fault:
    """A byte now and then, never silent for long: in the ``head``, the ``body``, or the line that states the length of a ``chunk``."""

    def fault(handler: Handler, content: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if at == "body":
            handler.wfile.write(b"Content-Length: %d\r\n\r\n" % len(content))
        elif at == "chunk":
            handler.wfile.write(b"Transfer-Encoding: chunked\r\n\r\n")
        _until_left(handler, b"0", pause=0.05)

    return fault


def _until_left(handler: Handler, piece: bytes, pause: float = 0.0) -> None:
    handler.close_connection = True
    try:
        for _ in range(2000):
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause)
    except OSError:
        return
