"""What a function does with little memory and time: in a forked child, so that a bomb that goes off takes no test with it."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.errors import InputError

PAGE = resource.getpagesize()
WAIT = 30.0


def refusal(function: Callable[..., object], *arguments: object, memory: int = 2**28, seconds: int = 5) -> str:
    """The message of the `InputError` that a call raises, with at most `memory` bytes more than there were, and `seconds` of a processor.

    Half a minute is what a call may wait, on a machine on which much else runs.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_call, args=(there, memory, seconds, function, arguments), daemon=True)
    child.start()
    there.close()
    try:
        assert here.poll(WAIT), f"still waiting after {WAIT} s"
        kind, said = here.recv()
    except EOFError:
        kind, said = "killed", f"after {seconds} s, or by the fault itself"
    finally:
        child.kill()
        child.join()
    assert kind == "InputError", f"{kind}: {said}"
    return said


def _call(there: Connection, memory: int, seconds: int, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.RLIM_INFINITY))
    try:
        there.send(("nothing raised", repr(function(*arguments))[:300]))
    except InputError as error:
        there.send(("InputError", str(error)))
    except BaseException as error:
        there.send((type(error).__name__, str(error)[:300]))
