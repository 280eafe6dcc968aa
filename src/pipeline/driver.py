"""The process that runs the workflow: one at a time in a folder, and the heir of one that was killed."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.errors import InputError
from pipeline.jobs import run
from pipeline.jobs.run import Owner

log = logging.getLogger(__name__)

RUN_ID = re.compile(r"(?:^|_)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")  # the name of Snakemake's SLURM jobs, perhaps after a prefix
SECONDS_TO_END = 90  # SLURM's own KillWait is 30 s; then it reports the job as ended
LOOKS, BETWEEN = 20, 0.05  # jobs of a killed driver hold its lock for moments, when they look whether it lives


class Driver:
    """What `claim` gives the driver of a folder: the right to work there, or why it has none."""

    def __init__(self, folder: Path, owner: Owner, handle: IO[bytes] | None, refusal: InputError | None = None) -> None:
        self._folder, self._owner, self._handle, self._refusal = folder, owner, handle, refusal

    def begin(self) -> None:
        """Begin a run: jobs of a killed driver are ended, with their state kept; then theirs is no run any more, and a new one begins.

        To be called before the first job is submitted. Raises `InputError` where another driver works in the folder, or may do so.
        """
        if self._refusal:
            raise self._refusal
        end_local_orphans(self._folder)
        end_orphans(self._folder.parent)
        self._owner = self._owner._replace(token=uuid.uuid4().hex)
        self._owner.write(self._handle)
        run.enter(self._folder, self._owner)

    def close(self) -> None:
        """Leave the folder, as the end of the process does."""
        if self._handle:
            self._handle.close()


def is_at_work(folder: Path) -> bool:
    """Whether a driver holds the folder's `.snakemake` now; False where that cannot be known."""
    try:
        with open(folder / run.FILE, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def claim(folder: Path, host: str | None = None) -> Driver:
    """Hold the folder's `.snakemake` for this process, and remove the locks of a driver that was killed on this `host`.

    The kernel released a dead driver's flock with it, its lock files stayed. A living driver holds the flock: then its locks are left
    alone. So they are where the last driver ran on another machine, since not every shared disk tells of its flock. Whoever has no right to
    work in the folder is stopped by `Driver.begin` alone: much that Snakemake does is no run, and needs none.
    """
    host, process = host or socket.gethostname(), str(os.getpid())
    try:
        folder.mkdir(exist_ok=True)
        handle = os.fdopen(os.open(folder / run.FILE, os.O_RDWR | os.O_CREAT, 0o666), "rb+")
    except OSError as error:
        refusal = InputError("cannot be written", file=folder, found=error.strerror, remedy="Run in another folder.")
        return Driver(folder, Owner(), None, refusal)
    free, last, locks = _lock(handle), Owner.read(folder), list((folder / "locks").glob("*"))
    refusal = None
    if free is False:
        problem = f"another snakemake works in this folder (process {last.process or '?'} on {last.host or 'an unknown machine'})"
        refusal = InputError(problem, remedy="Wait for its end, or end it by Ctrl-C; then start again.")
    elif locks and last.host not in ("", host):
        problem = f"the folder was last used on {last.host}, where a snakemake may still work in it"
        refusal = InputError(problem, remedy="If none runs there any more: snakemake --unlock, and again.")
    if refusal:
        log.warning("%s", refusal)  # at once: Snakemake's own message, which may come first, does not tell who works here
        return Driver(folder, last, handle, refusal)
    for lock in locks if free else []:
        lock.unlink(missing_ok=True)
    owner = Owner(host, process, last.token)  # the old token still holds: jobs of a killed driver may keep their state
    owner.write(handle)
    return Driver(folder, owner, handle)


def _lock(handle: IO[bytes]) -> bool | None:
    """Take the lock of an open file: True, or False where another process has it, or None where the disk knows no locks."""
    for _ in range(LOOKS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                return None
            time.sleep(BETWEEN)
        else:
            return True
    return False


def end_local_orphans(folder: Path, seconds: float = SECONDS_TO_END) -> None:
    """Wait until the jobs that a killed driver left on this machine have ended: they notice its death and keep their state.

    Those that do not end within so many `seconds` are left alone: once the run has another token, they can replace nothing.
    """
    try:
        handle = open(folder / run.JOBS, "rb")  # noqa: SIM115 - closed below, where there is one
    except OSError:
        return
    with handle:
        until, said = time.monotonic() + seconds, False
        while _lock(handle) is False:
            if not said:
                log.warning("waiting for jobs of a driver that was killed: they stop and keep what they have done")
                said = True
            if time.monotonic() > until:
                log.warning("jobs of a driver that was killed have not ended within %g s; they will write nothing any more", seconds)
                return


class _Job(NamedTuple):
    """One of SLURM's jobs."""

    id: str
    name: str
    uid: str
    user: str
    directory: str


def end_orphans(folder: Path) -> list[str]:
    """Cancel the SLURM jobs that a killed driver left behind in `folder`, and wait until they have ended; returns their ids.

    Told to stop, they keep their state, and the jobs submitted next go on from it. To be called by a driver that holds the folder and has
    submitted nothing yet. Those of another user cannot be cancelled, and are named. Raises `InputError` when the own ones do not end.
    """
    me, found = str(os.getuid()), _jobs_of(folder)
    if others := [f"{job.id} ({job.user})" for job in found if job.uid != me]:
        log.warning("SLURM jobs of other users' runs in this folder are not cancelled, but will write nothing: %s", " ".join(others))
    orphans = [job.id for job in found if job.uid == me]
    if not orphans:
        return []
    log.warning("cancelling %d SLURM jobs of a driver that was killed: %s", len(orphans), " ".join(orphans))
    subprocess.run(["scancel", *orphans], check=False, capture_output=True)  # whether it helped is asked below
    until = time.monotonic() + SECONDS_TO_END
    while left := [job.id for job in _jobs_of(folder) if job.uid == me]:
        if time.monotonic() > until:
            raise InputError(
                "SLURM jobs of an earlier run in this folder do not end", found=" ".join(left), remedy=f"Run: scancel {' '.join(left)}"
            )
        time.sleep(1)
    return orphans


def _jobs_of(folder: Path) -> list[_Job]:
    """Unfinished SLURM jobs, of whichever user, that Snakemake submitted from `folder`; none where there is no SLURM.

    Where SLURM does not answer, as on a machine with its programs and no cluster, that is said, and the run goes on.
    """
    if not shutil.which("squeue"):
        return []
    command = ["squeue", "--noheader", "--format=%i|%j|%U|%u|%Z"]
    asked = subprocess.run(command, check=False, capture_output=True, text=True)
    if asked.returncode:
        why = asked.stderr.strip().rpartition("\n")[2]
        log.warning("squeue does not answer (%s): jobs that a killed driver left are not looked for", why)
    jobs = [_Job(*line.split("|", 4)) for line in asked.stdout.splitlines() if line.count("|") >= 4]
    here = folder.resolve()
    return [job for job in jobs if RUN_ID.search(job.name) and Path(job.directory).resolve() == here]
