"""Texts that are read as a whole: UTF-8, of bounded size, and one message for whatever is in their way."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import require_file
from pipeline.limits import MOST_TEXT

NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)  # as people write one: `float` knows ``1_000`` too
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
AS_UTF8 = "Save it with the encoding UTF-8, which editors and spreadsheets offer."


def read_bytes(path: str | Path, what: str = "file", *, expected: str | None = None, remedy: str = "", most: int = MOST_TEXT) -> bytes:
    """All bytes of a file that is read as a whole; `what` it is stands in the message where it is absent.

    Raises `InputError` when it is absent, no regular file, or larger than `most` bytes.
    """
    path = require_file(path, what, expected=expected, remedy=remedy)
    if (size := path.stat().st_size) > most:
        problem, found, expected = "is too large to be read as a whole", f"{size:,} bytes", f"at most {most:,} bytes"
        raise InputError(problem, file=path, found=found, expected=expected, remedy=remedy)
    return path.read_bytes()


def read_text(path: str | Path, what: str = "file", *, expected: str = "UTF-8 text", most: int = MOST_TEXT) -> str:
    """The text of a UTF-8 file, without its byte order mark. Raises `InputError` as `read_bytes`, and for another encoding."""
    content = read_bytes(path, what, expected=expected, most=most)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, content.splitlines(keepends=True), expected) from error
    if "\0" in text:
        raise not_utf8(path, [content], expected)
    return text


def not_utf8(path: str | Path, lines: Iterable[bytes], expected: str = "UTF-8 text") -> InputError:
    """The error for a file that is not UTF-8 text, with the row of the first byte that is none."""
    for row, line in enumerate(lines, start=1):
        if row == 1 and (line.startswith(UTF16) or b"\0" in line):
            found = "UTF-16" if line.startswith(UTF16) else "a byte 0: UTF-16, or no text"
            return InputError("cannot be read as text", file=path, row=1, found=found, expected=expected, remedy=AS_UTF8)
        try:
            line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            found = f"byte 0x{line[error.start]:02x}"
            return InputError("cannot be read as text", file=path, row=row, found=found, expected=expected, remedy=AS_UTF8)
    return InputError("cannot be read as text", file=path, expected=expected, remedy=AS_UTF8)
