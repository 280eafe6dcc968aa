"""Tasks of one job in forked processes: imports and data are loaded once, and a task that dies takes no other along."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import TypeVar

from pipeline.jobs.cores import Cores
from pipeline.machine import machine_fault
from pipeline.stopping import GRACE

log = logging.getLogger(__name__)

T = TypeVar("T")
LOOK = 0.5  # seconds between two looks for an idle core
MEANT = {"SIGKILL": "perhaps out of memory", "SIGBUS": "a file that it read was cut, or a disk did not read"}


def run_forked(tasks: Sequence[T], work: Callable[[T], None], cores: Cores) -> dict[T, str]:
    """Call `work` with each of `tasks`, in that order, each call in a process forked from this one.

    As many at a time as the job has cores, and further ones while the run has cores to spare. A process that dies is no other's end.
    When this process is told to stop, the forked ones are told too and may keep what they have done; when it dies, so do they.

    Returns how those ended that did not end well, by task: nothing when all is done.
    """
    context = multiprocessing.get_context("fork")
    waiting, running, ended = list(tasks), {}, {}
    try:
        while waiting or running:
            while waiting:
                granted = sum(own for _, own in running.values()) < cores.count  # it runs on a core that the job was given
                core = None if granted else cores.spare()
                if not granted and core is None:
                    break
                task = waiting.pop(0)
                process = context.Process(target=_call, args=(work, task), daemon=True)
                process.start()
                running[process] = task, granted
                if core:
                    core.close()  # its lock is held by the process alone from here on
            wait([process.sentinel for process in running], LOOK if waiting else None)
            for process in [process for process in running if not process.is_alive()]:
                task, _ = running.pop(process)
                if process.exitcode:
                    ended[task] = how_it_ended(process.exitcode)
    finally:
        _end(list(running))
    return ended


def _call(work: Callable[[T], None], task: T) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    die_with_parent()
    try:
        work(task)
    except Exception as error:
        if fault := machine_fault(error):
            log.error("%s: %s", task, fault)
        else:
            log.exception("%s: unexpected error: please report it together with this log", task)
        sys.exit(1)


def _end(processes: Sequence[multiprocessing.Process]) -> None:
    """Tell them to stop, and after `GRACE` seconds do not ask any more."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
        process.join()


def die_with_parent() -> None:
    """From now on this forked process ends when its parent does, be it by a kill."""
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def how_it_ended(code: int | None, crash: str = "a crash") -> str:
    """The end of a process in words, from its exit code as `multiprocessing` gives it; `crash`: what a signal not in `MEANT` tells of."""
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"{name}: {MEANT.get(name, crash)}"
