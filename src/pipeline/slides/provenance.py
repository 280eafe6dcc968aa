"""What a file of the slide stage was made from: a fingerprint of the slide and a digest of the settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import require_file
from pipeline.machine import MachineError
from pipeline.provenance import code_version
from pipeline.slides.filesets import slide_files

ENDS = 64 * 1024
ABSENT = "absent"


class SpoiltError(InputError):
    """A file of ours is not as it was written: it is damaged, was edited, or is another slide's."""


@contextmanager
def made_by(stage: str) -> Iterator[None]:
    """An `InputError` about a file of an earlier `stage` as `MachineError`: it is no fault of the slide, and that stage makes it again."""
    try:
        yield
    except InputError as error:
        raise MachineError(error.problem, path=error.file, remedy=f"`--forcerun {stage}` makes it again.") from error


def slide_fingerprint(path: str | Path) -> str:
    """16 hex digits that tell a slide from any other, by all of its files (`pipeline.slides.filesets`)."""
    return set_fingerprint(slide_files(path))


def set_fingerprint(files: Sequence[Path]) -> str:
    """The fingerprint of a file, or of a set of files that lie together: their names as seen from the first, and what they hold.

    Wherever the set lies it is the same. A file that is absent, or none that can be read to its end, counts as absent.
    """
    if len(files) == 1:
        return fingerprint(files[0])
    folder = files[0].parent
    prints = {os.path.relpath(file, folder): fingerprint(file) if file.is_file() else ABSENT for file in files}
    lines = "\n".join(f"{name}\t{digest}" for name, digest in sorted(prints.items()))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]


def fingerprint(path: str | Path) -> str:
    """sha256 (16 hex digits) of a file's size and of its first and last 64 KiB: a slide of gigabytes is told apart in a millisecond.

    Raises `OSError` when it cannot be read, `InputError` when it is absent or none that ends: a pipe, a device, a folder.
    """
    size = require_file(path, "slide file").stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as handle:
        digest.update(handle.read(ENDS))
        handle.seek(max(size - ENDS, 0))
        digest.update(handle.read(ENDS))
    return digest.hexdigest()[:16]


def code_of(*modules: str) -> str:
    """The version of the code in this room that makes a slide's file, by the modules that compute what is in it."""
    return code_version(*modules, within="pipeline.slides")


def settings_digest(*parts: object) -> str:
    """16 hex digits that change with any of the JSON-able `parts` (dataclasses as dicts), whatever the order of their keys."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
