"""The one owner of ``bags/<modality>.h5``: instances of any kind (tiles of a tissue array, slices of an MRI), a bag of them a patient.

One HDF5 file for all patients: `features` [N, d] float32 or float16 in one piece, `patient_id` [N], and further columns [N] that say
what an instance is (marker, tile, sequence, slice) and that no model reads. Rows are in the order of patient, then of the further
columns by name, so that a file's bytes do not depend on the order of what it was made from.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

import pipeline
from pipeline.errors import InputError, nearest
from pipeline.files import atomic, require_file
from pipeline.hdf5 import attributes, datasets, open_hdf5, texts
from pipeline.identifiers import check_id
from pipeline.machine import machine_fault
from pipeline.npz import read_npz

log = logging.getLogger(__name__)

FEATURES, PATIENT = "features", "patient_id"
REMAKE = "Delete the file, so that it is made again."


@dataclass(frozen=True)
class BagRows:
    """features [N, d] float32 or float16; patients [N] ids; columns: name → [N] text or numbers; attributes of the file."""

    features: np.ndarray
    patients: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, object] = field(default_factory=dict)


def import_bags(file: str | Path, output: str | Path, *, patient_id: str = PATIENT, features: str = FEATURES) -> None:
    """Write `output` from instances made elsewhere: a .npz or .h5 file with an array `features` [N, d] and one `patient_id` [N] (text).

    Other one-dimensional arrays of N entries are kept as columns, all else is left out and named in the log. float16 stays, other
    numbers become float32. Nothing pickled is loaded. Raises `InputError` for a file that cannot be read, a lacking array, another
    shape, a value that is not finite, ids that are numbers (001 would be 1) or may not become file names.
    """
    path = Path(file)
    arrays = _read_arrays(path)
    for name in (features, patient_id):
        if name not in arrays:
            remedy = nearest(name, arrays) or "Name the arrays in the cohort's file: `bags.<modality>.features` and `patient_id`."
            raise InputError(f"lacks the array {name!r}", file=path, found=", ".join(sorted(arrays)), expected=repr(name), remedy=remedy)
    values, patients = _checked_features(arrays.pop(features), path), _text(arrays.pop(patient_id))
    _check_patients(patients, len(values), path, patient_id)
    columns = {name: _text(x) for name, x in arrays.items() if x.shape == (len(values),) and x.dtype.kind in "iufbSUO"}
    if left := sorted(set(arrays) - set(columns)):
        log.info("%s: arrays that are no column of %d entries are left out: %s", path, len(values), ", ".join(left))
    write_bags(output, BagRows(values, patients.astype(str), columns))
    sizes = np.unique(patients, return_counts=True)[1]
    log.info("%s: %d rows of width %d, %d patients with %d to %d", path, *values.shape, len(sizes), sizes.min(), sizes.max())


def write_bags(path: str | Path, rows: BagRows) -> None:
    """Write `rows`, sorted, atomically; ties between all columns are broken by the features themselves.

    Raises `InputError` for a value that is not finite.
    """
    _check_finite(rows.features, path)
    keys = [rows.patients, *(rows.columns[name] for name in sorted(rows.columns)), _digests(rows.features)]
    order = np.lexsort([np.unique(key, return_inverse=True)[1] for key in reversed(keys)])
    columns = {name: rows.columns[name][order] for name in sorted(rows.columns)}
    _write(path, [BagRows(rows.features[order], rows.patients[order], columns)], rows.features.shape, rows.features.dtype, rows.attributes)


def gather_bags(files: Sequence[str | Path], output: str | Path) -> None:
    """Join files of one patient each, given in the order of the patients, into `output`; one of them is in memory at a time.

    Attributes that all files agree on are kept. Raises `InputError` for files of different widths or columns, and when there is none.
    """
    if not files:
        raise InputError("no patient has a bag", file=output, expected="at least one")
    first, length, shared = None, 0, {}
    for file in files:
        features, rows = _open(file)
        head = (features.shape[1], str(features.dtype), sorted(rows.columns))
        first, shared = first or head, dict(rows.attributes) if first is None else _agreed(shared, rows.attributes)
        if head != first:
            problem = "the bag has another width or other columns than those before it"
            raise InputError(problem, file=file, found=head, expected=first, remedy=REMAKE)
        length += len(features)
    parts = (BagRows(np.array(features), rows.patients, rows.columns) for features, rows in map(_open, files))
    _write(output, parts, (length, first[0]), np.dtype(first[1]), shared)


def read_rows(path: str | Path) -> BagRows:
    """All of a file, its features mapped from disk. Raises `InputError` when it is absent or not such a file."""
    features, rows = _open(path)
    return BagRows(features, rows.patients, rows.columns, rows.attributes)


def read_bags(path: str | Path) -> dict[str, np.ndarray]:
    """patient → features [n, d], mapped from disk, patients sorted. Raises `InputError` as `read_rows`."""
    features, rows = _open(path)
    return _by_patient(features, rows.patients)


def _by_patient(features: np.ndarray, patients: np.ndarray) -> dict[str, np.ndarray]:
    names, starts = np.unique(patients, return_index=True)
    return dict(zip(map(str, names), np.split(features, starts[1:]), strict=True))


def _write(path: str | Path, parts: Iterable[BagRows], shape: tuple[int, int], dtype: np.dtype, attributes: Mapping[str, object]) -> None:
    columns: dict[str, list[np.ndarray]] = {}
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        features, start = file.create_dataset(FEATURES, shape, dtype), 0
        for part in parts:
            features[start : start + len(part.features)] = part.features
            start += len(part.features)
            for name, values in {PATIENT: part.patients, **part.columns}.items():
                columns.setdefault(name, []).append(values)
        for name, pieces in columns.items():
            values = np.concatenate(pieces)
            file.create_dataset(name, data=np.char.encode(values, "utf-8") if values.dtype.kind == "U" else values)
        file.attrs.update({**attributes, "version": pipeline.__version__})


def _open(path: str | Path) -> tuple[np.ndarray, BagRows]:
    """Features mapped from disk, and the rest of the file."""
    try:
        with open_hdf5(path) as file:
            found = datasets(file)
            features = found.pop(FEATURES)
            offset, shape, dtype = features.id.get_offset(), features.shape, features.dtype
            columns = {name: _text(_values(values)) for name, values in found.items()}
            facts = attributes(file)
        patients = columns.pop(PATIENT).astype(str)
        if offset is None or len(shape) != 2 or not shape[0] or patients.shape != shape[:1] or (patients[1:] < patients[:-1]).any():
            expected = "rows [N, d] in one piece, in the order of patient_id [N]"
            raise InputError("is no file of bags", file=path, expected=expected, remedy=REMAKE)
    except InputError as error:
        raise InputError(error.problem, file=path, found=error.found, expected=error.expected, remedy=REMAKE) from error
    except (OSError, RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        expected = f"an HDF5 file with {FEATURES!r} and {PATIENT!r}"
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise machine_fault(error, path) or InputError(problem, file=path, expected=expected, remedy=REMAKE) from error
    rows = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    return rows, BagRows(rows[:0], patients, columns, facts)


def _values(item: h5py.Dataset) -> np.ndarray:
    text = h5py.check_string_dtype(item.dtype)
    return texts(item) if text and text.length is None and item.ndim == 1 else item[()]


def _agreed(some: Mapping[str, object], others: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in some.items() if name in others and np.array_equal(value, others[name])}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a .npz or .h5 file; nothing that a file may hide in pickles is executed."""
    require_file(path, "file of instances", expected="a .npz or .h5 file", remedy="Check the path and `data_dir`.")
    try:
        if path.suffix == ".npz":
            return read_npz(path)
        if path.suffix in (".h5", ".hdf5"):
            with open_hdf5(path) as file:
                return {name: _values(item) for name, item in datasets(file).items() if item.ndim}
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        remedy = "Write it again; text as arrays of fixed-length strings, since pickled objects are not loaded."
        raise machine_fault(error, path) or InputError(f"cannot be read ({error})", file=path, remedy=remedy) from error
    raise InputError("not a format of instances", file=path, found=path.suffix, expected=".npz, .h5 or .hdf5")


def _checked_features(values: np.ndarray, path: Path) -> np.ndarray:
    """float32 or float16 [N, d], finite."""
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iuf":
        found = f"{list(values.shape)} of {values.dtype}"
        raise InputError("the features have another shape or type", file=path, column=FEATURES, found=found, expected="numbers [N, d]")
    if values.dtype != np.float16:
        with np.errstate(over="ignore"):  # what overflows is not finite, which is told below
            values = values.astype(np.float32)
    _check_finite(values, path)
    return values


def _check_finite(values: np.ndarray, path: str | Path) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        problem, remedy = f"{int(bad.sum())} of {len(bad)} rows have a feature that is not finite", "Rows count from 0."
        raise InputError(problem, file=path, row=int(bad.argmax()), column=FEATURES, expected="finite numbers", remedy=remedy)


def _text(values: np.ndarray) -> np.ndarray:
    """Bytes and text objects as arrays of text; other values as they are."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8")
    if values.dtype.kind == "O":
        return np.array([x.decode("utf-8") if isinstance(x, bytes) else str(x) for x in values], dtype=str)
    return values


def _check_patients(patients: np.ndarray, rows: int, path: Path, column: str) -> None:
    if patients.shape != (rows,):
        raise InputError("not one patient id a row", file=path, column=column, found=list(patients.shape), expected=f"[{rows}]")
    if patients.dtype.kind != "U":
        remedy = "Store the ids as text: as numbers they lose their leading zeros."
        raise InputError("the patient ids are no text", file=path, column=column, found=patients.dtype, expected="text", remedy=remedy)
    for patient, row in zip(*np.unique(patients, return_index=True), strict=True):
        check_id(str(patient), "patient", file=path, row=int(row), column=column)


def _digests(features: np.ndarray) -> np.ndarray:
    """A number a row that follows from its bytes alone [N]."""
    rows = np.ascontiguousarray(features)
    return np.array([int.from_bytes(hashlib.blake2b(row.data, digest_size=7).digest(), "big") for row in rows], dtype=np.int64)
