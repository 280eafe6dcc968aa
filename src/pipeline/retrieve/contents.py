"""Whether a fetched file is what its name says, as far as that shows without reading its meaning."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from pipeline.limits import SMALL_TABLE, UNPACKING_TEXT
from pipeline.machine import machine_fault

HEAD = 512


def damage(path: Path, name: str) -> str | None:
    """Why the bytes at `path` cannot be a file called `name`, or None.

    Found: an empty file, a page in place of data, and with ``.gz`` a stream that is none, is cut short or fails its CRC.
    """
    with open(path, "rb") as handle:
        head = handle.read(HEAD)
    if not head:
        return "the file is empty"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page came in place of the file"
    return _broken_gzip(path) if name.endswith(".gz") else None


def _broken_gzip(path: Path) -> str | None:
    left = max(SMALL_TABLE, UNPACKING_TEXT * path.stat().st_size)
    try:
        with gzip.open(path, "rb") as handle:
            while left >= 0 and (block := handle.read(1 << 22)):
                left -= len(block)
    except (OSError, EOFError, zlib.error) as error:
        if fault := machine_fault(error, path):
            raise fault from error
        return f"the gzip file is broken ({error})"
    return None if left >= 0 else f"the gzip file unpacks to more than {UNPACKING_TEXT} times its size"
