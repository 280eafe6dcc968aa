"""The cores of a run on one machine, of which a job that trains may use those that idle.

Snakemake gives a job of many folds one core, whatever happens later. Near the end of a run, or with one model on eight cores, the others
would idle. So the driver lays out one file per core, and who trains holds the lock of a file for each core. The kernel releases the locks
of a process that dies, however it dies. Jobs that do not train hold none: they are short, and beside them a core may have two processes.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import IO

FOLDER = Path(".snakemake") / "cores"  # below the folder in which the workflow runs
IDLE = 3.0  # seconds for which a core has to be free before it is one to spare: so long a job that Snakemake starts may take to claim it


def lay_out(count: int, folder: Path = FOLDER) -> None:
    """Make the files of `count` cores and remove those of an earlier run; none where jobs run on other machines (`count` 0)."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {str(core) for core in range(count)}
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()
    for name in kept:
        (folder / name).touch()


def take(folder: Path = FOLDER) -> IO[str] | None:
    """Occupy a free core until the returned file is closed, by this process and by those forked from it; None when there is none."""
    for file in sorted(folder.glob("*")):
        try:
            handle = open(file, "r+")  # noqa: SIM115 - the lock is held as long as it is open
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
        else:
            return handle
    return None


class Cores:
    """The cores of one job: the `count` that it was given, which it runs on even where their locks cannot be had, and spare ones."""

    def __init__(self, count: int = 1, folder: Path = FOLDER, idle: float = IDLE) -> None:
        self.count, self._folder, self._idle = count, folder, idle
        self._own: list[IO[str]] = []
        self._free_since: float | None = None
        self.spare()  # claims the job's own, and notes whether more are free

    def spare(self) -> IO[str] | None:
        """A core that has been free for `idle` seconds, occupied until the file is closed; None when there is none."""
        while len(self._own) < self.count and (own := take(self._folder)):
            self._own.append(own)
        core = take(self._folder) if len(self._own) == self.count else None
        if core is None:
            self._free_since = None
            return None
        self._free_since = self._free_since or time.monotonic()
        if time.monotonic() - self._free_since >= self._idle:
            return core
        core.close()
        return None
