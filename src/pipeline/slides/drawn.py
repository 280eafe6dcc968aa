"""Which files of contours were drawn by hand: told by their first kilobytes, without the libraries that read their shapes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

SUFFIX = ".geojson"
HEAD = 4096  # bytes of a file in which our properties are found
START = b'{"type": "FeatureCollection", "properties": {"checksum": "'  # of a file of ours
MARKS = (START, b'"made_by": "slide2surv"', b'"slide_fingerprint"')  # of which damage in one place, or another tool, spares one


def is_ours(content: bytes) -> bool:
    """Whether a file of contours was written by us, whatever happened to it since."""
    return any(mark in content for mark in MARKS)


def drawn_by_hand(folder: str | Path) -> dict[str, str]:
    """The slides in a folder of contours whose file was drawn by hand, by id, each with 16 hex digits of the file's content.

    Of the other files only the first kilobytes are read: ten thousand take less than a second.
    """
    drawn: dict[str, str] = {}
    if not Path(folder).is_dir():
        return drawn
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX) and not entry.name.startswith(".") and entry.is_file():
                with open(entry.path, "rb") as handle:
                    head = handle.read(HEAD)
                    if not is_ours(head) and not is_ours(content := head + handle.read()):
                        drawn[entry.name.removesuffix(SUFFIX)] = hashlib.sha256(content).hexdigest()[:16]
    return dict(sorted(drawn.items()))
