"""Scenes of known geometry as NIfTI files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np


def affine(spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), rotation=None) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag(spacing)
    matrix[:3, 3] = origin
    return matrix


def rotation(degrees: float, axis: int) -> np.ndarray:
    """About one axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    a, b = [i for i in range(3) if i != axis]
    matrix[[a, a, b, b], [a, b, a, b]] = [c, -s, s, c]
    return matrix


def points(shape, matrix) -> np.ndarray:
    """The places of all voxels' middles [X, Y, Z, 3], mm."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return grid @ matrix[:3, :3].T + matrix[:3, 3]


def ball(shape, matrix, centre, radius) -> np.ndarray:
    """bool [X, Y, Z]: voxels whose middle lies within `radius` mm of `centre`."""
    return np.linalg.norm(points(shape, matrix) - np.asarray(centre), axis=-1) <= radius


def write(path: Path, values: np.ndarray, matrix: np.ndarray) -> Path:
    values = np.asarray(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.uint8) if values.dtype == bool else values, matrix), path)
    return path
