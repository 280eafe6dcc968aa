"""The Snakemake that runs one job on a node of a cluster: it outlives the driver, and ends when SLURM says so."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import psutil  # a requirement of Snakemake

from pipeline.stopping import GRACE, STATUS


def end_surely_on_sigterm(seconds: float = GRACE + 5) -> None:
    """From now on this Snakemake, which runs one job on a node, ends within so many `seconds` of SIGTERM, and tells its job.

    Its own handler may wait for a lock of the thread that it interrupts, and for a job that was not told. To be called by the main thread.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written to by the interpreter, whatever the handler does
    threading.Thread(target=_end_surely, args=(reading, seconds), daemon=True).start()


def _end_surely(reading: int, seconds: float) -> None:
    while os.read(reading, 1)[0] != signal.SIGTERM:
        pass
    until = time.monotonic() + seconds
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            child.send_signal(signal.SIGTERM)
    time.sleep(until - time.monotonic())
    os._exit(STATUS)
