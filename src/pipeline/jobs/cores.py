"""The cores of a run on one machine, of which a job may use those that idle.

Snakemake gives a job of many folds one core, whatever happens later. Near the end of a run, or with one model on eight cores, the others
would idle. So the driver lays out one file per core, and whoever works on a core holds the lock of a file: a job for itself, and for each
further worker that it starts. The kernel releases the locks of a process that dies, however it dies.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

FOLDER = Path(".snakemake") / "cores"  # below the folder in which the workflow runs


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
    """Occupy an idle core until the returned file is closed, by this process and by those forked from it; None when there is none."""
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


@contextmanager
def own(folder: Path = FOLDER) -> Iterator[None]:
    """Occupy one core for the job itself while the body runs; where none is free, the job runs all the same."""
    handle = take(folder)
    try:
        yield
    finally:
        if handle:
            handle.close()
