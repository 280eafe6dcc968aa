"""The one owner of the slide stage's HDF5: coordinates and features of the patches of one slide.

Each file holds the slide's id and ends with a seal (`pipeline.slides.sealing`), which every reader proves once, before HDF5 sees the file.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

import pipeline
from pipeline.errors import InputError
from pipeline.files import atomic, require_file
from pipeline.hdf5 import attributes, dataset, open_hdf5
from pipeline.machine import machine_fault
from pipeline.slides.provenance import SpoiltError
from pipeline.slides.sealing import is_as_sealed, seal, sealed_checksum

log = logging.getLogger(__name__)

COORDS, FEATURES = "coords", "features"
OURS = {"settings", "slide_fingerprint", "version"}  # attributes of a file that was written here
REMAKE = "Delete the file and run its stage again (`--forcerun patches` or `features`)."


@dataclass(frozen=True)
class PatchFile:
    """coords int32 [N, 2] (level-0 pixels, top-left corner; None where the file has none), features float [N, d] (None in a file
    of coordinates) and the attributes of the file."""

    coords: np.ndarray | None
    features: np.ndarray | None = None
    attributes: Mapping[str, object] = field(default_factory=dict)

    @property
    def coords_digest(self) -> str:
        """16 hex digits of the coordinates."""
        return hashlib.sha256(np.ascontiguousarray(self.coords, np.int32).tobytes()).hexdigest()[:16]


def write_coords(path: str | Path, coords: np.ndarray, attributes: Mapping[str, object]) -> None:
    """Write coordinates [N, 2] and attributes, atomically; the file's name is the slide's id."""
    _write(path, {COORDS: np.asarray(coords, np.int32)}, attributes)


def write_features(path: str | Path, features: np.ndarray, coords: np.ndarray | None, attributes: Mapping[str, object]) -> None:
    """Write features [N, d] as contiguous float16 with their coordinates [N, 2] (None where they are not known), atomically.

    The file's name is the slide's id. Raises `InputError` when a value is not finite as float16 (±65504): a NaN found here costs a slide,
    found in training a week.
    """
    with np.errstate(over="ignore"):
        half = np.asarray(features).astype(np.float16)
    _check_finite(half, path)
    if coords is not None and len(half) != len(coords):
        raise ValueError(f"{len(half)} rows of features for {len(coords)} patches")
    known = {} if coords is None else {COORDS: np.asarray(coords, np.int32)}
    _write(path, {FEATURES: half, **known}, attributes)


def _write(path: str | Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, object]) -> None:
    with atomic(path) as temporary:
        with h5py.File(temporary, "w") as file:
            for name, values in arrays.items():
                file.create_dataset(name, data=values)  # contiguous: one read, 14 times faster than one chunk per row
            file.attrs.update({**attributes, "slide_id": Path(path).stem, "version": pipeline.__version__})
        seal(temporary)


def read_coords(path: str | Path) -> PatchFile:
    """Coordinates and attributes of a file of coordinates (or of features). Raises `InputError` as `read_features`."""
    coords, _, attributes = _read(path, with_features=False)
    if coords is None:
        raise InputError("has no coordinates", file=path, expected=f"a dataset {COORDS!r}", remedy=REMAKE)
    return PatchFile(coords, None, attributes)


def read_features(path: str | Path) -> PatchFile:
    """Features [N, d] in the type they are stored in, coordinates, attributes; also of the files of CLAM and TRIDENT.

    Those may carry a leading axis of 1 ([1, N, d], [1, N, 2]) and keep their attributes on the datasets.
    Raises `InputError` when the file is absent, cut off, of another shape, or holds a value that is not finite, and the `SpoiltError`
    among these when it is ours and not as it was written, or another slide's.
    """
    coords, features, attributes = _read(path, with_features=True)
    if features is None:
        raise InputError("has no features", file=path, expected=f"a dataset {FEATURES!r} [N, d]", remedy=REMAKE)
    if coords is not None and len(coords) != len(features):
        found = f"{len(features)} rows of features, {len(coords)} of coordinates"
        raise InputError("features and coordinates do not match", file=path, found=found, expected="as many", remedy=REMAKE)
    _check_finite(features, path)
    return PatchFile(coords, features, attributes)


def _read(path: str | Path, *, with_features: bool) -> tuple[np.ndarray | None, np.ndarray | None, dict[str, object]]:
    with _proven(path) as file:
        sets = {name: found for name in (COORDS, FEATURES) if (found := dataset(file, name)) is not None}
        facts = attributes(*sets.values(), file)
        coords = _matrix(sets[COORDS], path, columns=2).astype(np.int32) if COORDS in sets else None
        features = _matrix(sets[FEATURES], path) if with_features and FEATURES in sets else None
    return coords, features, facts


@contextmanager
def _proven(path: str | Path) -> Iterator[h5py.File]:
    """The file, open, once its seal has been proven; a file of another tool has none."""
    try:
        is_whole = is_as_sealed(require_file(path, "HDF5 file", remedy=REMAKE))
        if is_whole is False:
            raise SpoiltError("is damaged: its content does not fit its checksum", file=path, remedy=REMAKE)
        with open_hdf5(path) as file:
            slide_id, expected = file.attrs.get("slide_id"), Path(path).stem
            if is_whole and slide_id != expected:
                raise SpoiltError("holds another slide", file=path, found=slide_id, expected=expected, remedy=REMAKE)
            if is_whole is None and OURS.issubset(file.attrs):
                problem = "has no checksum at its end: it was cut off, changed, or written by an older version"
                raise SpoiltError(problem, file=path, remedy=REMAKE)
            yield file
    except OSError as error:
        raise machine_fault(error, path) or InputError(f"cannot be read as HDF5 ({error})", file=path, remedy=REMAKE) from error


def _matrix(values: h5py.Dataset, path: str | Path, columns: int | None = None) -> np.ndarray:
    shape = values.shape
    usable = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
    if not usable or (columns and shape[-1] != columns):
        expected = f"[N, {columns or 'd'}]"
        raise InputError(f"dataset {values.name!r} has another shape", file=path, found=list(shape), expected=expected, remedy=REMAKE)
    return values[()].reshape(-1, shape[-1])


def _check_finite(features: np.ndarray, path: str | Path) -> None:
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} of {len(bad)} patches have a feature that is not finite as {features.dtype}",
            file=path,
            row=int(bad.argmax()),
            remedy="Check the encoder's checkpoint and precision.",
        )


def map_features(path: str | Path, checksum: object = None) -> np.ndarray:
    """Features [N, d] mapped from disk where they lie in one piece (ours), read otherwise; as precise as the file.

    checksum: what their manifest states, where it does (else None or NaN). Raises `InputError` as `read_features`.
    """
    with _proven(path) as file:
        if isinstance(checksum, str) and (found := sealed_checksum(path)) != checksum:
            problem = "is not the file of features that its manifest lists"
            raise SpoiltError(problem, file=path, found=found, expected=f"the checksum {checksum}", remedy=REMAKE)
        mapped = _mapped(dataset(file, FEATURES), path)
    return read_features(path).features if mapped is None else mapped  # type: ignore[return-value]


def _mapped(values: h5py.Dataset | None, path: str | Path) -> np.ndarray | None:
    """What lies in one piece, without reading it; None for anything else."""
    if values is None or values.ndim != 2 or not len(values) or values.id.get_offset() is None:
        return None
    return np.memmap(path, dtype=values.dtype, mode="r", offset=values.id.get_offset(), shape=values.shape)


def read_made(path: str | Path, **origin: str) -> PatchFile | None:
    """What a file of ours holds, where its attributes say that it was made from this very `origin`; else None.

    Features are mapped, not read. A file that is not as it was written counts as none, and the log says so: it is about to be made again.
    """
    with _made(path, **origin) as file:
        if file is None:
            return None
        coords = file[COORDS][()] if COORDS in file else None
        return PatchFile(coords, _mapped(dataset(file, FEATURES), path), attributes(file))


@contextmanager
def _made(path: str | Path, **origin: str) -> Iterator[h5py.File | None]:
    if not Path(path).is_file():
        yield None
        return
    slide_id = None
    if is_whole := is_as_sealed(path):
        with open_hdf5(path) as file:
            slide_id = file.attrs["slide_id"]
            if slide_id == Path(path).stem:
                yield file if all(file.attrs.get(key) == value for key, value in origin.items()) else None
                return
    fault = f"holds the slide {slide_id}" if is_whole else "is damaged, or was written by another version"
    log.warning("%s %s: it is made again", path, fault)
    yield None


@dataclass
class Progress:
    """How far the patches of a slide have been encoded: features float16 [n, d] of the readable ones of the first m, readable bool [m],
    and why the others are not, in order."""

    features: list[np.ndarray] = field(default_factory=list)
    readable: list[np.ndarray] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def patches(self) -> int:
        return sum(map(len, self.readable))


def write_progress(path: str | Path, progress: Progress, origin: Mapping[str, object]) -> None:
    """Keep what is done of a slide, atomically; `origin` says from what it was made."""
    faults = np.array(progress.faults, dtype=h5py.string_dtype())
    arrays = {FEATURES: np.concatenate(progress.features), "readable": np.concatenate(progress.readable), "faults": faults}
    _write(path, arrays, origin)


def read_progress(path: str | Path, origin: Mapping[str, str]) -> Progress:
    """What `write_progress` kept; nothing done where there is no such file, it is damaged, or it was made from something else."""
    with _made(path, **origin) as file:
        if file is None:
            return Progress()
        return Progress([file[FEATURES][()]], [file["readable"][()]], list(file["faults"].asstr()[()]))
