"""Amounts as people read them, and the disk that slides fill: for the doctor, the plan and the progress of a run."""

from __future__ import annotations

COORDS_BYTES = 2 * 8  # two int32 in the file of coordinates, two in that of features
SLIDE_BYTES = 2_000_000  # contours, overlay and what HDF5 adds (our choice)


def gigabytes(count: float) -> str:
    """Bytes in GB with one decimal, MB below one."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """Seconds in the largest of days, h, min and s of which there are two.

    >>> duration(7200), duration(90)
    ('2.0 h', '1.5 min')
    """
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def slide_files(patches: float, slides: float, width: int) -> float:
    """Bytes of contours, coordinates and features (float16, `width` a patch)."""
    return patches * (2 * width + COORDS_BYTES) + slides * SLIDE_BYTES
