"""SIGTERM, by which a scheduler announces that it will kill a job (time limit, preemption, scancel), usually within 30 seconds.

Every job ends on it as on an exception, so that half-written files are removed (`logged`); work that can keep what it has done
defers it to its next step.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STATUS = 128 + signal.SIGTERM  # what a shell reports of a process that the signal ended
GRACE = 20  # seconds a child may take to keep what it has done; SLURM's default gives 30 in all


def end_on_sigterm() -> None:
    """From now on SIGTERM raises `SystemExit` where the process is; only the main thread may say so, elsewhere nothing changes.

    A second one does not disturb what the first one began.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(STATUS)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM is only remembered: the function that is yielded tells whether it came. Afterwards the handler before holds again.

    The body asks at every step and, when told so, keeps its state and ends with `sys.exit(STATUS)`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()

    def remember(*_: object) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
