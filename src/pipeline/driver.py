"""The process that runs the workflow: one at a time in a folder, and the heir of one that was killed."""

from __future__ import annotations

import fcntl
import logging
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import IO

from pipeline.errors import InputError

log = logging.getLogger(__name__)

RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # Snakemake names its SLURM jobs after the run
SECONDS_TO_END = 90  # SLURM's own KillWait is 30 s; then it reports the job as ended


def claim(folder: Path, host: str | None = None) -> IO[str]:
    """Hold the folder's `.snakemake` for this process, and remove the locks of a driver that was killed on this `host`.

    The kernel released a dead driver's flock with it, its lock files stayed. A living driver holds the flock: then its locks are left
    alone, and Snakemake says that the folder is locked. So they are where the last driver ran on another machine, since not every shared
    disk tells of its flock. Returns the open file, to be kept until the process ends.
    """
    host = host or socket.gethostname()
    folder.mkdir(exist_ok=True)
    handle = open(folder / "driver", "a+")  # noqa: SIM115 - held until the process ends
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return handle
    handle.seek(0)
    last, locks = handle.read(), list((folder / "locks").glob("*"))
    if locks and last not in ("", host):
        log.warning("the folder was last used on %s; if no snakemake runs there any more: snakemake --unlock, and again", last)
        return handle
    for lock in locks:
        lock.unlink(missing_ok=True)
    handle.truncate(0)
    handle.write(host)
    handle.flush()
    return handle


def end_orphans(folder: Path) -> list[str]:
    """Cancel the SLURM jobs that a killed driver left behind in `folder`, and wait until they have ended; returns their ids.

    Told to stop, they keep their state, and the jobs submitted next go on from it. To be called by a driver that holds the folder and has
    submitted nothing yet. Raises `InputError` when they do not end.
    """
    orphans = _jobs_of(folder)
    if not orphans:
        return []
    log.warning("cancelling %d SLURM jobs of a driver that was killed: %s", len(orphans), " ".join(orphans))
    subprocess.run(["scancel", *orphans], check=False, capture_output=True)  # whether it helped is asked below
    until = time.monotonic() + SECONDS_TO_END
    while left := _jobs_of(folder):
        if time.monotonic() > until:
            raise InputError(
                "SLURM jobs of an earlier run in this folder do not end", found=" ".join(left), remedy=f"Run: scancel {' '.join(left)}"
            )
        time.sleep(1)
    return orphans


def _jobs_of(folder: Path) -> list[str]:
    """Ids of the user's unfinished SLURM jobs that Snakemake submitted from `folder`; none where there is no SLURM.

    Where SLURM does not answer, as on a machine with its programs and no cluster, that is said, and the run goes on.
    """
    if not shutil.which("squeue"):
        return []
    command = ["squeue", "--me", "--noheader", "--format=%i|%j|%Z"]
    asked = subprocess.run(command, check=False, capture_output=True, text=True)
    if asked.returncode:
        why = asked.stderr.strip().rpartition("\n")[2]
        log.warning("squeue does not answer (%s): jobs that a killed driver left are not looked for", why)
    jobs = [line.split("|", 2) for line in asked.stdout.splitlines() if line.count("|") >= 2]
    here = folder.resolve()
    return [job for job, name, directory in jobs if RUN_ID.fullmatch(name) and Path(directory).resolve() == here]
