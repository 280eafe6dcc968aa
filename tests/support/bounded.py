"""What a function does with little memory and time: in a forked child, so that a bomb that goes off takes no test with it."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.errors import InputError

PAGE = resource.getpagesize()


def refusal(function: Callable[..., object], *arguments: object, memory: int = 2**28, seconds: float = 5.0) -> str:
    """The message of the `InputError` that a call raises, with at most `memory` bytes more than there were, and within `seconds`."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_call, args=(there, memory, function, arguments), daemon=True)
    begin = time.monotonic()
    child.start()
    there.close()
    try:
        assert here.poll(seconds), f"still busy after {seconds} s"
        kind, said = here.recv()
    finally:
        child.kill()
        child.join()
    assert time.monotonic() - begin < seconds
    assert kind == "InputError", f"{kind}: {said}"
    return said


def _call(there: Connection, memory: int, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.RLIM_INFINITY))
    try:
        there.send(("nothing raised", repr(function(*arguments))[:300]))
    except InputError as error:
        there.send(("InputError", str(error)))
    except BaseException as error:
        there.send((type(error).__name__, str(error)[:300]))
