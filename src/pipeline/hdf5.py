"""The one way to read HDF5, ours and others': what a file gives out is its own, and no more than it stores.

HDF5 lets a dataset be a link to another file, lie in another file's bytes, or be put together from datasets elsewhere: a file of features
could so copy what it does not own into results. Such datasets are refused, and none is read that declares more than it stores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.files import require_file
from pipeline.limits import MOST_PACKED, check_declared

MOST_IN_ATTRIBUTE = 4096  # values of one attribute: HDF5 keeps more than 64 KiB elsewhere
TEXT_BLOCK = 2**28  # bytes of text that one step may unpack
ELSEWHERE = "Write the file again with its data in it, with `h5repack` say."


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """An HDF5 file, open for reading. Raises `InputError` for what is no regular file, `OSError` for what is no HDF5."""
    with h5py.File(require_file(path, "HDF5 file"), "r") as file:
        yield file


def dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """The dataset `name` of `file`, judged by what it declares; None where there is none.

    Raises `InputError` when it is a link out of the file, lies in other files, or declares more than the file stores for it.
    """
    link = file.get(name, getlink=True)
    if isinstance(link, h5py.SoftLink) and "/" not in link.path.strip("/"):  # another name of a neighbour
        name = link.path.strip("/")
        link = file.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        found = f"a link to {link.filename}" if isinstance(link, h5py.ExternalLink) else f"a link to {link.path}"
        raise _elsewhere(file, name, found)
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        return None
    _check(file, name, found)
    return found


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All datasets of the top level by name, as `dataset`."""
    found = {name: dataset(file, name) for name in file}
    return {name: values for name, values in found.items() if values is not None}


def _check(file: h5py.File, name: str, values: h5py.Dataset) -> None:
    how = values.id.get_create_plist()
    if how.get_layout() == h5py.h5d.VIRTUAL:
        raise _elsewhere(file, name, "a virtual dataset")
    if how.get_external_count():
        raise _elsewhere(file, name, f"bytes of {how.get_external(0)[0].decode(errors='replace')}")
    size = values.dtype.itemsize
    declared = size * (math.prod(values.shape) if values.shape is not None else 0)
    stored = min(values.id.get_storage_size(), file.id.get_filesize())
    shape = f"{list(values.shape or ())} of {values.dtype}"
    if declared and not stored:
        raise InputError(f"dataset {name!r} was never written", file=file.filename, found=f"{shape}, no byte of it stored")
    if values.chunks:  # one is unpacked as a whole, however little of it lies in the dataset
        declared = max(declared, size * math.prod(values.chunks))
    check_declared(f"dataset {name!r}", declared, stored, file.filename, shape=shape)


def _elsewhere(file: h5py.File, name: str, found: str) -> InputError:
    problem = f"dataset {name!r} does not lie in the file itself"
    return InputError(problem, file=file.filename, found=found, expected="a dataset with its data in the file", remedy=ELSEWHERE)


def texts(values: h5py.Dataset) -> np.ndarray:
    """The entries of a dataset of texts of any length [N], as objects `str`.

    They are read in blocks: each entry is a reference, and many may lead to one long text.
    """
    file, words = values.file, []
    most, total = file.id.get_filesize(), 0
    step = max(16, TEXT_BLOCK // max(1, most))
    for start in range(0, len(values), step):
        block = values.asstr("utf-8")[start : start + step]
        total += sum(map(len, block))
        check_declared(f"dataset {values.name!r}", total, most, file.filename, shape=f"{len(values)} texts", limit=MOST_PACKED)
        words.append(block)
    return np.concatenate(words) if words else np.empty(0, object)


def attributes(*owners: h5py.Dataset | h5py.File) -> dict[str, object]:
    """The attributes of `owners` as plain values, those of a later owner on top. Raises `InputError` for one of absurd size."""
    found: dict[str, object] = {}
    for owner in owners:
        for name in owner.attrs:
            count = owner.attrs.get_id(name).get_space().get_simple_extent_npoints()
            if count > MOST_IN_ATTRIBUTE:
                problem, expected = f"attribute {name!r} has too many values", f"at most {MOST_IN_ATTRIBUTE:,}"
                raise InputError(problem, file=owner.file.filename, found=f"{count:,}", expected=expected)
            value = owner.attrs[name]
            found[name] = value.item() if isinstance(value, np.generic) else value
    return found
