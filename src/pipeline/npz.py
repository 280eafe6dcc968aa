"""Arrays of a .npz file, judged by what its members declare before any is unpacked."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from pipeline.errors import InputError
from pipeline.limits import check_declared

MOST_MEMBERS = 10_000


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name; nothing pickled is loaded.

    Raises `InputError` for one that declares more than the file holds, `ValueError`, `OSError`, `EOFError`, `KeyError`, `zlib.error` or
    `zipfile.BadZipFile` for a file that is damaged.
    """
    stored = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MOST_MEMBERS:
            raise InputError("has too many arrays", file=path, found=f"{len(members):,}", expected=f"at most {MOST_MEMBERS:,}")
        check_declared("the archive", sum(member.file_size for member in members), stored, path, shape=f"{len(members)} arrays")
        for member in members:
            _check(archive, member, path)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _check(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    with archive.open(member) as handle:
        try:
            version = npy.read_magic(handle)
        except ValueError:  # no array: it comes as bytes, of which there are as many as the archive says
            return
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(handle)
    if math.prod(shape) * dtype.itemsize > member.file_size and not dtype.hasobject:
        found = f"{list(shape)} of {dtype} in {member.file_size:,} bytes"
        raise InputError(f"array {member.filename.removesuffix('.npy')!r} declares more than the file holds", file=path, found=found)
