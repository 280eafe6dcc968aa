"""Seamless texture sheets and smooth random fields for the synthetic sections."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

from pipeline.seeds import seed_from

SHEET = 1024  # pixels a side; a power of two


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], cells: Sequence[float], falloff: float = 0.5) -> np.ndarray:
    """float32 [height, width] noise of about unit standard deviation, summed over octaves of `cells` pixels a grid cell."""
    total = np.zeros(shape, np.float32)
    for octave, cell in enumerate(cells):
        grid = rng.standard_normal([int(side / cell) + 4 for side in shape]).astype(np.float32)
        zoomed = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        y, x = rng.integers(0, int(cell) + 1, 2)
        total += falloff**octave * zoomed[y : y + shape[0], x : x + shape[1]]
    return total / total.std()


def blurred_noise(rng: np.random.Generator, sigma_x: float, sigma_y: float) -> np.ndarray:
    """float32 [SHEET, SHEET] Gaussian-blurred white noise without a seam, standard deviation 1."""
    frequency = np.fft.fftfreq(SHEET)[:, None], np.fft.rfftfreq(SHEET)[None]
    spectrum = np.exp(-2 * (np.pi**2) * ((frequency[0] * sigma_y) ** 2 + (frequency[1] * sigma_x) ** 2))
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SHEET, SHEET))) * spectrum, s=(SHEET, SHEET))
    return (noise / noise.std()).astype(np.float32)


@cache
def sheets() -> dict[str, np.ndarray]:
    """The sheets that all sections share, made once a process (each section takes its own piece).

    collagen, cytoplasm, ragged: uint8, mean 128. angle: float32, direction of the fibres in radians. chromatin: float32, standard
    deviation 1. grain: int8 [SHEET, SHEET, 3], noise of the camera.
    """
    rng = np.random.default_rng(seed_from("demo texture sheets"))
    row, column = np.mgrid[:SHEET, :SHEET].astype(np.float32)
    bend = 34 * blurred_noise(rng, 75, 75) + 5 * blurred_noise(rng, 16, 16)
    fibres = np.zeros((SHEET, SHEET), np.float32)
    for width, weight in ((5.0, 0.7), (1.4, 0.6)):
        straight = blurred_noise(rng, 30 * width, width)
        fibres += weight * cv2.remap(straight, column, row + bend + SHEET, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    fibres += 0.4 * blurred_noise(rng, 40, 40)
    slope = np.gradient(bend)
    granular = 0.7 * blurred_noise(rng, 1.2, 1.2) + 0.8 * blurred_noise(rng, 6, 6)
    return {
        "collagen": _as_bytes(fibres, 42),
        "cytoplasm": _as_bytes(granular, 30),
        "ragged": _as_bytes(blurred_noise(rng, 9, 9) + 0.8 * blurred_noise(rng, 3, 3), 26),
        "angle": np.arctan2(-slope[1], 1 + slope[0]).astype(np.float32),
        "chromatin": blurred_noise(rng, 1.3, 1.3),
        "grain": np.rint(1.2 * rng.standard_normal((SHEET, SHEET, 3))).clip(-4, 4).astype(np.int8),
    }


def laid(sheet: np.ndarray, shape: tuple[int, int], corner: tuple[int, int]) -> np.ndarray:
    """The sheet repeated over `shape` (height, width), its pixel `corner` (row, column) at the top left."""
    rolled = np.roll(sheet, (-corner[0], -corner[1]), (0, 1))
    repeats = (-(-shape[0] // SHEET), -(-shape[1] // SHEET), *[1] * (sheet.ndim - 2))
    return np.tile(rolled, repeats)[: shape[0], : shape[1]]


def _as_bytes(values: np.ndarray, spread: float) -> np.ndarray:
    return np.clip(128 + spread * values / values.std(), 0, 255).astype(np.uint8)
