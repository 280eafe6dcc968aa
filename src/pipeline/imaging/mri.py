"""One sequence of one patient: from image and mask to the tumour's slices for an encoder, or to a volume.

The papers on multi-sequence MRI state no preprocessing beyond "crop the tumour by its segmentation"; every figure here is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.errors import InputError
from pipeline.imaging.manifest import SequenceFiles
from pipeline.imaging.nifti import Volume, foreground, onto_grid, read_volume, same_grid
from pipeline.imaging.region import Box, crop, resample, scale_intensity, standardise, tumour_box, tumour_slices

ROWS = ("slice", "sequence", "volume")
AUTO = "auto"


@dataclass(frozen=True)
class MriSettings:
    """How the tumour is cut out and described; every default is our choice.

    margin_mm: around the tumour, within a slice. max_slices: a sequence. slice_axis: 0 (right), 1 (front), 2 (head: axial slices), or
    ``auto`` = that of the largest spacing. labels: of the mask that are tumour (None = all above 0). rows: what a row of the bag is:
    a ``slice``; a ``sequence`` (the mean over its slices); or a ``volume``, a sequence resampled to `shape` (H, W, D), flattened.
    sequences: their names in order (None = those of the manifest by name).
    """

    margin_mm: float = 5.0
    max_slices: int = 32
    slice_axis: int | str = 2
    labels: Sequence[int] | None = None
    rows: str = "slice"
    shape: Sequence[int] = (128, 128, 24)
    sequences: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for key, fits, expected in (
            ("rows", self.rows in ROWS, ", ".join(ROWS)),
            ("slice_axis", self.slice_axis in (0, 1, 2, AUTO), "0, 1, 2 or auto"),
            ("margin_mm", self.margin_mm >= 0, "0 or more"),
            ("max_slices", self.max_slices >= 1, "1 or more"),
            ("shape", len(self.shape) == 3 and min(self.shape) >= 1, "three numbers of voxels"),
        ):
            if not fits:
                raise InputError("unknown setting of MRI", column=key, found=getattr(self, key), expected=expected)


class NoTumourError(InputError):
    """A sequence without a tumour in it: it counts as missing, not as broken."""


@dataclass(frozen=True)
class Tumour:
    """intensities [X, Y, S] in [0, 1] and foreground, slices along the last axis; spacing [3], mm; axis: which one of the image it was.

    `resampled`: the mask came from another grid.
    """

    intensities: np.ndarray
    foreground: np.ndarray
    spacing: np.ndarray
    axis: int
    resampled: bool
    settings: MriSettings

    @cached_property
    def box(self) -> Box:
        return tumour_box(self.foreground, self.spacing, self.settings.margin_mm)

    @cached_property
    def slices(self) -> np.ndarray:
        """Numbers of the slices that are used [n]."""
        return tumour_slices(self.foreground, self.settings.max_slices)

    def images(self) -> np.ndarray:
        """float32 [n, h, w, 3] in 0…255, not quantised: the crops as an encoder takes them, which resizes and normalises them."""
        cut = np.moveaxis(crop(self.intensities, self.box)[..., self.slices - self.box.start[2]], 2, 0)
        return np.repeat(255 * cut[..., None], 3, axis=3)

    def volume(self) -> np.ndarray:
        """float32 `settings.shape`: the box resampled, then standardised over its voxels that are not 0."""
        return standardise(resample(crop(self.intensities, self.box), self.settings.shape))

    def facts(self) -> dict[str, object]:
        """What the manifest tells of it."""
        spacing = " ".join(f"{s:.4g}" for s in self.spacing)
        slices = " ".join(map(str, self.slices))
        return {
            "slices": slices,
            "spacing": spacing,
            "box": str(self.box),
            "slice_axis": self.axis,
            "mask_grid": "resampled" if self.resampled else "image",
        }


def read_tumour(files: SequenceFiles, settings: MriSettings) -> Tumour:
    """Read image and mask, and bring the mask onto the image's grid where that differs.

    Raises `NoTumourError` when nothing of the mask lies in the image, and `InputError` as `read_volume` does.
    """
    image, mask = read_volume(files.image), read_volume(files.mask)
    marked = foreground(mask, settings.labels)
    if not marked.any():
        _refuse_empty(files, mask, settings)
    resampled = not same_grid(image, mask)
    if resampled:
        marked = onto_grid(marked, mask.affine, image)
        if not marked.any():
            found = f"image {_extent(image)}, mask {_extent(mask)}"
            remedy = "If the mask was drawn on this image, its header was lost on the way: copy the image's affine into it."
            raise NoTumourError("nothing of the mask lies in the image", file=files.mask, found=found, expected="an overlap", remedy=remedy)
    spacing = image.spacing
    axis = _slice_axis(spacing) if settings.slice_axis == AUTO else int(settings.slice_axis)
    last = [*(a for a in range(3) if a != axis), axis]
    intensities = scale_intensity(image.values)
    return Tumour(intensities.transpose(last), marked.transpose(last), spacing[last], axis, resampled, settings)


def _slice_axis(spacing: np.ndarray) -> int:
    """The axis of the largest spacing; among equals the one towards the head."""
    return max(range(3), key=lambda axis: (round(float(spacing[axis]), 3), axis))


def _refuse_empty(files: SequenceFiles, mask: Volume, settings: MriSettings) -> None:
    found = ", ".join(f"{v:g}" for v in np.unique(mask.values)[:8])
    expected = "voxels above 0" if settings.labels is None else "voxels of " + ", ".join(map(str, settings.labels))
    remedy = "Leave the sequence out of the manifest" + ("." if settings.labels is None else ", or correct `labels`.")
    raise NoTumourError("the mask is empty", file=files.mask, found=found, expected=expected, remedy=remedy)


def _extent(volume: Volume) -> str:
    """The space of a volume's voxels, mm."""
    ends = np.array(np.meshgrid(*((-0.5, n - 0.5) for n in volume.values.shape))).reshape(3, -1)
    points = volume.affine[:3, :3] @ ends + volume.affine[:3, 3:]
    return " × ".join(f"{low:.0f}…{high:.0f}" for low, high in zip(points.min(axis=1), points.max(axis=1), strict=True)) + " mm"
