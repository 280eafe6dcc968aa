"""Digests of what users give, by content: paths and times say nothing of it.

At each start Snakemake asks whether a table of gigabytes or ten thousand slides have changed. A digest is therefore kept with the size,
times and inode of its file, and taken anew only when one of these has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

from pipeline.files import sha256, write_text

ABSENT, UNREADABLE = "absent", "unreadable"


class Contents:
    """Digests of files, kept in the JSON file `memory` (None: for this process alone)."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory, self._changed = memory, False
        self._known: dict[str, list[object]] = _read(memory) if memory else {}

    def digest(self, path: str | Path, read: Callable[[Path], str] = sha256) -> str:
        """16 hex digits of a file's content, or ``absent``, or ``unreadable``; read: how a file is digested."""
        path = Path(path)
        try:
            state = path.stat()
        except OSError:
            return ABSENT
        if not S_ISREG(state.st_mode):  # a pipe would never end
            return ABSENT
        key = f"{read.__name__} {path.absolute()}"
        now = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        known = self._known.get(key)
        if known is None or known[1:] != now:
            try:
                known = self._known[key] = [read(path)[:16], *now]
            except OSError:  # its job will tell why
                return UNREADABLE
            self._changed = True
        return str(known[0])

    def listing(self, folder: Path, files: Iterable[Path], read: Callable[[Path], str] = sha256) -> str:
        """16 hex digits of the names, relative to `folder`, and the contents of `files`."""
        lines = sorted(f"{os.path.relpath(file, folder)}\t{self.digest(file, read)}" for file in files)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def keep(self) -> None:
        """Write what is known, where it may be written: a memory that is lost costs reading the files again, and nothing else."""
        if self._memory and self._changed:
            try:
                write_text(self._memory, json.dumps(self._known))
            except OSError:
                return
            self._changed = False


def _read(memory: Path) -> dict[str, list[object]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(line, list) and len(line) == 5 for line in known.values()) else {}


class Place(str):
    """A path that says nothing of what is there: Snakemake compares parameters by `repr`, and a job gets it as plain text."""

    def __repr__(self) -> str:
        return "<place>"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class Source(Place):
    """The path of a file that the user gives, whose `repr` is its content."""

    contents = Contents()

    def __repr__(self) -> str:
        return f"<{self.contents.digest(self)}>"


PARTS = {"file": Source, "table": Source, "manifest": Source, "checkpoint": Source, "folder": Place, "pattern": Place}


def by_content(settings: Any) -> Any:
    """`settings` with a `Source` or a `Place` for each path, at any depth, by the names in `PARTS`.

    >>> by_content({"os": {"file": "no/such.tsv", "time": "days"}})
    {'os': {'file': <absent>, 'time': 'days'}}
    """
    if isinstance(settings, Mapping):
        return {key: PARTS.get(key, by_content)(value) if isinstance(value, str) else by_content(value) for key, value in settings.items()}
    return [by_content(part) for part in settings] if isinstance(settings, list) else settings
