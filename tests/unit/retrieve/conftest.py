"""The server, and a client that notes how long it would have slept."""

import threading
from collections.abc import Iterator

import pytest
from archive_server import Server

from pipeline.retrieve.client import Client


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def slept() -> list[float]:
    """The seconds that a client would have slept."""
    return []


@pytest.fixture
def client(slept: list[float]) -> Client:
    return Client(tries=4, sleep=slept.append)
