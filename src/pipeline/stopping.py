"""SIGTERM, by which a scheduler announces that it will kill a job (time limit, preemption, scancel), usually within 30 seconds.

Every job ends on it as on an exception, so that half-written files are removed (`logged`); work that can keep what it has done
defers it to its next step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
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


def end_surely_on_sigterm(seconds: float = GRACE + 5) -> None:
    """From now on this Snakemake, which runs one job on a node, ends within so many `seconds` of SIGTERM, and tells its job.

    Its own handler may wait for a lock of the thread that it interrupts, and for a job that was not told. To be called by the main thread.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written to by the interpreter, whatever the handler does
    threading.Thread(target=_end_surely, args=(reading, seconds), daemon=True).start()


def _end_surely(reading: int, seconds: float) -> None:
    import psutil  # a requirement of Snakemake

    while os.read(reading, 1)[0] != signal.SIGTERM:
        pass
    until = time.monotonic() + seconds
    for child in psutil.Process().children(recursive=True):
        child.send_signal(signal.SIGTERM)
    time.sleep(until - time.monotonic())
    os._exit(STATUS)


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
