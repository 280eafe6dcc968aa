"""MD5 of slides from outside: a column of the slide table, or a file as ``md5sum`` writes it, for all files of each slide."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import md5, require_file
from pipeline.slides.filesets import slide_files
from pipeline.tables import read_lines

log = logging.getLogger(__name__)

LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](.+)")
COPY_AGAIN = "Copy the slide again from its source, or correct"


class Md5Sums:
    """The checksums of a file of ``md5sum`` (32 hex digits, two blanks or a blank and ``*``, a path).

    Paths are relative to `folder`, to the file's own folder, or absolute. Raises `InputError` for another line, and for a path with two
    different sums.
    """

    def __init__(self, file: str | Path, folder: str | Path) -> None:
        self.file = require_file(file, "list of checksums", remedy="Check `slides.md5sums` and `data_dir`.")
        self._sums: dict[str, str] = {}
        for row, line in enumerate(read_lines(file), start=1):
            text = line.rstrip("\r\n")
            if not text:
                continue
            match = LINE.fullmatch(text)
            if not match:
                expected = "a line of md5sum: 32 hex digits, two blanks, a path"
                raise InputError("is no list of checksums", file=file, row=row, found=text[:80], expected=expected)
            for place in {_normal(base / match[2]) for base in (Path(folder), self.file.parent)}:
                known = self._sums.setdefault(place, match[1].lower())
                if known != match[1].lower():
                    raise InputError("states two checksums of one file", file=file, row=row, found=match[2], expected=known)

    def of(self, slide: str | Path) -> dict[Path, str | None]:
        """The sum of each file of a slide, None where the list has none."""
        return {path: self._sums.get(_normal(path)) for path in slide_files(slide)}


def _normal(path: Path) -> str:
    return os.path.normpath(path.absolute())


def check_md5(row: Mapping[str, object], sums: Mapping[Path, str | None] | None) -> None:
    """Raise `InputError` when a slide's file differs from the MD5 of its row of the slide table, or one of its files from its sum.

    `sums`: those of `Md5Sums.of`, None without a list; the log says which files the list leaves out.
    """
    path, stated = Path(str(row["path"])), row.get("md5")
    if isinstance(stated, str):
        _compare(path, stated, f"{COPY_AGAIN} the md5 of the slide table.", column="md5")
    unlisted = [file for file, expected in (sums or {}).items() if expected is None]
    if unlisted:
        found = f"{len(unlisted)} of its {len(sums)} files" if len(sums) > 1 else "its file"
        log.warning("slide %s: `slides.md5sums` does not list %s (%s): nothing tells its damage", row["slide_id"], found, unlisted[0].name)
    for file, expected in (sums or {}).items():
        if expected is not None:
            _compare(file, expected, f"{COPY_AGAIN} `slides.md5sums`.")


def _compare(path: Path, expected: str, remedy: str, column: str | None = None) -> None:
    if not path.is_file():
        raise InputError("no such file of the slide", file=path, expected=f"the MD5 {expected}", remedy=remedy)
    if (found := md5(path)) != expected:
        raise InputError("the file is damaged or another one", file=path, column=column, found=found, expected=expected, remedy=remedy)
