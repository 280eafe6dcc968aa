"""NIfTI files as volumes in canonical orientation, and masks on the grid of an image. The only module that knows NIfTI."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.files import require_file
from pipeline.limits import DEFLATE
from pipeline.machine import machine_fault

log = logging.getLogger(__name__)

SUFFIXES = (".nii", ".nii.gz")
NIFTI2_HEADER = 540  # bytes, which the file states first, in either byte order
SPACING = (0.01, 100.0)  # mm; a file outside states another unit or nothing (our choice)
MOST_BYTES, SMALL_BYTES = 2**31, 2**29  # of an unpacked file; of any, since an empty mask packs to a thousandth (our choice)
BLOCK = 2**22
MOST_VOXELS = 2**29  # 512 × 512 × 2048; they become float32
SAME_GRID = 1e-3  # largest difference of two affines of one grid (specification of the cohort's MRI)
COPY_AGAIN = "Copy the file again, or leave the sequence out of the manifest."
CONVERT = "Convert DICOM series first, for instance with `dcm2niix -z y -o <folder> <series>`."


@dataclass(frozen=True)
class Volume:
    """values [X, Y, Z] float32, axes to the patient's right, front and head (RAS+); affine [4, 4]: voxel → mm."""

    values: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Edge of a voxel along each axis [3], mm."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))


def read_volume(path: str | Path) -> Volume:
    """A .nii or .nii.gz file, reoriented to the closest canonical axes; the whole file is checked, of .gz by its checksum too.

    Four dimensions are accepted where all beyond the third are 1. Voxels that are not finite become 0, with a warning. Raises
    `InputError` for a file that is absent, cut off or damaged, DICOM, of other dimensions or voxel types (RGB, complex), and for an
    affine that is singular, not finite or gives voxels of absurd size.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    values, affine = _decoded(Path(path))
    _check_affine(affine, path)
    orientation = io_orientation(affine)
    affine = affine @ inv_ornt_aff(orientation, values.shape)
    values = np.ascontiguousarray(apply_orientation(values, orientation))
    bad = ~np.isfinite(values)
    if bad.any():
        log.warning("%s: %d of %d voxels are not finite and count as 0", path, bad.sum(), bad.size)
        values[bad] = 0
    return Volume(values, affine)


def foreground(mask: Volume, labels: Sequence[int] | None = None) -> np.ndarray:
    """bool [X, Y, Z]: voxels above 0, or with one of `labels`."""
    return mask.values > 0 if labels is None else np.isin(np.rint(mask.values), labels)


def same_grid(one: Volume, other: Volume) -> bool:
    """Whether two volumes have the same voxels, up to 1e-3 in every entry of the affines."""
    return one.values.shape == other.values.shape and bool(np.abs(one.affine - other.affine).max() <= SAME_GRID)


def onto_grid(marked: np.ndarray, affine: np.ndarray, image: Volume) -> np.ndarray:
    """The mask `marked` (bool [X', Y', Z'] with `affine`) at the voxels of `image`, by the nearest neighbour; False outside of it."""
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(affine) @ image.affine  # voxel of the image → voxel of the mask
    marked = marked.astype(np.uint8)
    # `grid-constant`: the outermost voxels reach half a voxel beyond their centres, as all others do
    return affine_transform(marked, matrix[:3, :3], matrix[:3, 3], image.values.shape, order=0, mode="grid-constant", cval=0) > 0


def _decoded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """values [X, Y, Z] float32 and affine of a file, in its own orientation."""
    from nibabel import Nifti1Image, Nifti2Image
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    raw = _bytes(path)
    kind = Nifti2Image if NIFTI2_HEADER in (int.from_bytes(raw[:4], order) for order in ("little", "big")) else Nifti1Image
    try:
        image = kind.from_bytes(raw)
        shape, dtype = image.shape, image.get_data_dtype()
        if len(shape) < 3 or any(n != 1 for n in shape[3:]) or not all(shape):
            remedy = "Split the series and name one file a sequence." if len(shape) > 3 else COPY_AGAIN
            raise InputError("is not one volume", file=path, found=list(shape), expected="[X, Y, Z], or [X, Y, Z, 1]", remedy=remedy)
        if (voxels := int(np.prod(shape, dtype=object))) > MOST_VOXELS:
            raise InputError("has too many voxels", file=path, found=list(shape), expected=f"at most {MOST_VOXELS:,}", remedy=COPY_AGAIN)
        if dtype.kind not in "iuf":
            raise InputError("the voxels are no plain numbers", file=path, found=dtype, expected="integers or floating point")
        promised = int(image.dataobj.offset) + voxels * dtype.itemsize
        if promised > len(raw):
            expected = f"{promised} bytes by its header"
            raise InputError("is cut off", file=path, found=f"{len(raw)} bytes", expected=expected, remedy=COPY_AGAIN)
        return np.asarray(image.dataobj).astype(np.float32).reshape(shape[:3]), np.array(image.affine, dtype=float)
    except InputError:
        raise
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError, OSError, KeyError, TypeError, OverflowError) as error:
        raise machine_fault(error, path) or InputError(f"cannot be read as NIfTI ({error})", file=path, remedy=COPY_AGAIN) from error


def _bytes(path: Path) -> bytes:
    """A file's content, unpacked as a whole, which checks its checksum: damage is then never taken for voxels."""
    if path.is_dir() or path.suffix.lower() in (".dcm", ".ima"):
        raise InputError("DICOM is not read", file=path, expected=" or ".join(SUFFIXES), remedy=CONVERT)
    require_file(path, "image", remedy="Check the manifest's path; relative ones count from its folder.")
    stored = path.stat().st_size
    most = min(MOST_BYTES, max(SMALL_BYTES, DEFLATE * stored))
    unpacked = bytearray()
    try:
        with open(path, "rb") as handle:
            is_packed = handle.read(2) == b"\x1f\x8b"
        with (gzip.open if is_packed else open)(path, "rb") as handle:
            while len(unpacked) <= most and (block := handle.read(BLOCK)):
                unpacked += block
    except (OSError, EOFError, zlib.error) as error:
        raise machine_fault(error, path) or InputError(f"is damaged ({error})", file=path, remedy=COPY_AGAIN) from error
    if len(unpacked) > most:
        found, expected = f"more than {most:,} bytes", f"at most {most:,} in {stored:,} stored bytes"
        raise InputError("is too large for one volume", file=path, found=found, expected=expected, remedy=COPY_AGAIN)
    if unpacked[128:132] == b"DICM":
        raise InputError("DICOM is not read", file=path, expected=" or ".join(SUFFIXES), remedy=CONVERT)
    return bytes(unpacked)


def _check_affine(affine: np.ndarray, path: str | Path) -> None:
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    found = " × ".join(f"{s:.4g}" for s in spacing) + " mm"
    remedy = "Write the header again (sform or qform in mm), for instance with dcm2niix."
    if not volume > 1e-6 * spacing.prod():
        raise InputError("the affine is singular or not finite", file=path, found=found, expected="three independent axes", remedy=remedy)
    if spacing.min() < SPACING[0] or spacing.max() > SPACING[1]:
        expected = f"{SPACING[0]} to {SPACING[1]:g} mm"
        raise InputError("the size of a voxel is absurd", file=path, found=found, expected=expected, remedy=remedy)
