"""The bytes of an answer as they come, as long as they come fast enough to be worth waiting for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import requests
from urllib3.exceptions import HTTPError

BLOCK = 1 << 18
LEAST_RATE = 1024  # bytes a second that a body has to come at (our choice), over
OVER = 60.0  # seconds
BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, HTTPError)


class PassingError(Exception):
    """Something that may pass: the reason, the seconds the server asks to wait, and whether it answered at all."""

    def __init__(self, reason: str, wait: float = 0.0, *, answered: bool = True) -> None:
        self.wait, self.answered = wait, answered
        super().__init__(reason)


class DrippingError(PassingError):
    """Bytes come, but so slowly that the whole would never be there."""


class _Watch(threading.Thread):
    """Ends a connection that gives less than the least rate: its reader may wait within a line or a header, where no timeout counts."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__(daemon=True)
        self._response, self._over, self._done = response, OVER, threading.Event()
        self.come, self.has_ended = 0, False

    def run(self) -> None:
        before = 0
        while not self._done.wait(self._over):
            come, before = self.come - before, self.come
            if come < LEAST_RATE * self._over:
                self.has_ended = True
                self._response.raw.shutdown()
                return

    def leave(self) -> None:
        self._done.set()


def arriving(response: requests.Response, unpacked: bool = False) -> Iterator[bytes]:
    """The body of an answer in the pieces in which it comes; `unpacked`: as its encoding says, else as it was sent.

    Raises `PassingError` when it breaks off, and the `DrippingError` among these when it comes at less than 1 kB a second over a minute.
    """
    watch = _Watch(response)
    watch.start()
    try:
        while block := response.raw.read1(BLOCK, decode_content=unpacked):
            watch.come += len(block)
            yield block
    except Exception as error:
        if isinstance(error, BROKEN) and not watch.has_ended:
            raise PassingError(short(error)) from error
        if not watch.has_ended:
            raise
    finally:
        watch.leave()
    if watch.has_ended:
        raise DrippingError(f"less than {LEAST_RATE} bytes a second came over {OVER:g} s")


def short(error: BaseException) -> str:
    """An error of the network libraries on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
