"""The run that a job belongs to: one at a time in a folder, and what another one has superseded replaces no file any more.

The driver (`pipeline.driver`) holds the lock of ``.snakemake/driver``, in which it writes who it is and the token of its run. Jobs get the
token by an environment variable. A job on the driver's machine ends with its driver, as on SIGTERM; one on a cluster may outlive it, until
the token has changed. A job without a token, called by hand or by a test, belongs to no run and writes as ever.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.machine import MachineError

log = logging.getLogger(__name__)

FILE, JOBS = "driver", "jobs"  # in `.snakemake`: whose run it is; the lock that its jobs on the driver's machine share
FOLDER, TOKEN, DRIVER = "SLIDE2SURV_FOLDER", "SLIDE2SURV_RUN", "SLIDE2SURV_DRIVER"  # environment variables of a job
LENGTH = 512  # bytes of the file: written at once and always as long, so that nobody reads half of it
NEAR, FAR = 1.0, 15.0  # seconds between two looks, on the driver's machine and on another one


class SupersededError(MachineError):
    """Another run has taken the place of the one that this process belongs to, which may replace no file any more."""

    def __init__(self, folder: Path, host: str) -> None:
        super().__init__(f"this job belongs to a run that another one has superseded ({folder}, on {host})", everywhere=True)
        self.args = (f"{self.problem}: it writes nothing any more. Nothing is to be done: the newer run makes what is needed.",)
        self._origin = folder, host

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self._origin


class Owner(NamedTuple):
    """Whose a folder is: the machine and the process of the last driver, and the token of its run; empty where nothing is known."""

    host: str = ""
    process: str = ""
    token: str = ""

    @classmethod
    def read(cls, folder: Path) -> Owner:
        """What the driver's file in `folder` says; nothing where it cannot be read."""
        try:
            words = (folder / FILE).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError):
            return cls()
        return cls(*words[:3])

    def write(self, handle: IO[bytes]) -> None:
        """Write it into the driver's file, open as `handle`."""
        os.pwrite(handle.fileno(), "\n".join(self).encode().ljust(LENGTH - 1) + b"\n", 0)


def enter(folder: Path, owner: Owner) -> None:
    """Let all jobs that this process starts from now on belong to the run of `owner`, the driver of `folder`, which is this process."""
    (folder / JOBS).touch()
    os.environ |= {FOLDER: str(folder.resolve()), TOKEN: owner.token, DRIVER: owner.process}


def leave_driver() -> None:
    """Let this process and those that it starts outlive the driver: they are on a cluster, where the token alone counts."""
    os.environ.pop(DRIVER, None)


def hold() -> None:
    """Raise `SupersededError` when another run has taken the place of the one that this process belongs to."""
    if (token := os.environ.get(TOKEN)) and (owner := Owner.read(Path(os.environ[FOLDER]))).token not in ("", token):
        raise SupersededError(Path(os.environ[FOLDER]).parent, owner.host)


def follow() -> None:
    """From now on this process is told to stop, by SIGTERM, when its run has ended: with its driver, or by a run that superseded it."""
    if TOKEN in os.environ:
        folder = Path(os.environ[FOLDER])
        jobs = _share(folder / JOBS) if DRIVER in os.environ else None
        threading.Thread(target=_follow, args=(folder, jobs), daemon=True).start()


def _share(file: Path) -> IO[bytes] | None:
    """The lock of a run's jobs, shared with those until this process and all that are forked from it have ended."""
    try:
        handle = open(file, "rb")  # noqa: SIM115 - held until the process ends
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return None
    return handle


def _follow(folder: Path, _jobs: IO[bytes] | None) -> None:
    driver = os.environ.get(DRIVER)
    while True:
        time.sleep(NEAR if driver else FAR)
        if driver and not _lives(folder, driver):
            log.warning("the snakemake that started this job has ended: it stops, too, and keeps what it has done")
            break
        try:
            hold()
        except SupersededError as error:
            log.warning("%s", error)
            break
    os.kill(os.getpid(), signal.SIGTERM)


def _lives(folder: Path, process: str) -> bool:
    """Whether the driver `process` of this machine still holds `folder`."""
    if Owner.read(folder).process not in ("", process):
        return False
    try:
        with open(folder / FILE, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # the driver has it; or the disk knows no locks, or it was removed, and nothing can be told
        return True
    return False
