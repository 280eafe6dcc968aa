"""Ids that come from tables and file names and may become file names themselves."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from pipeline.errors import InputError

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def check_id(value: str, kind: str, *, file: str | Path | None = None, row: int | None = None, column: str | None = None) -> str:
    """Return `value` if it may become a file name, else raise `InputError` that names file, row and column.

    `kind` is ``"patient"`` or ``"slide"``. Letters, digits and ``. _ + -`` are allowed, never ``..`` and never a separator.
    """
    if SAFE_ID.fullmatch(str(value)) and ".." not in str(value):
        return str(value)
    raise InputError(
        f"not a usable {kind} id",
        file=file,
        row=row,
        column=column,
        found=value,
        expected="letters, digits, '.', '_', '+', '-', starting with a letter or digit, without '..'",
        remedy=f"Rename the {kind} in every table; ids become file names and are never followed out of the results folder.",
    )


def chunk_of(slide_id: str, chunks: int) -> int:
    """The chunk of a slide. It does not depend on which other slides there are, so a new slide makes one chunk run again."""
    return zlib.crc32(slide_id.encode()) % chunks
