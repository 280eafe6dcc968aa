"""What Snakemake has recorded of the files here: without a record it compares neither parameters nor contents of inputs.

Only the process that runs the workflow writes records. Files that a cluster's jobs finish after it was killed have none, and may have
been made under the settings of another run.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from pathlib import Path

RECORDS = Path(".snakemake/metadata")
LONGEST = 254  # characters of a file's name; longer records lie in folders, and pass here for absent
TIME_OF_FOLDER = ".snakemake_timestamp"  # by which Snakemake tells the time of a folder


def is_recorded(output: str | Path, records: Path = RECORDS) -> bool:
    """Whether Snakemake's folder of `records` has one of `output`."""
    name = urlsafe_b64encode(str(output).encode()).decode()
    return len(name) <= LONGEST and (records / name).is_file()


def expire(outputs: Iterable[str | Path], records: Path = RECORDS) -> list[Path]:
    """Make folders, and those of `outputs` that have no record, older than everything; returns the latter.

    What has no record is made again; a job keeps what its own keys prove to be finished. The content of a folder Snakemake cannot
    compare, and its time says nothing: what reads it has a parameter that tells of it. Where there are no records at all, results were
    brought from elsewhere without them: then nothing is done, and times decide.
    """
    if not records.is_dir() or not any(records.iterdir()):
        return []
    expired = []
    for output in map(Path, outputs):
        recorded, folder = is_recorded(output, records), output.is_dir()
        file = output / TIME_OF_FOLDER if folder else output
        if (folder or not recorded) and _date_back(file) and not recorded:
            expired.append(output)
    return expired


def _date_back(file: Path) -> bool:
    """Whether the file could be, and was not yet, made older than everything."""
    try:
        if file.stat().st_mtime == 0:
            return False
        os.utime(file, (0, 0))
    except OSError:  # absent, or where nothing may be written: nothing will be made there either
        return False
    return True
