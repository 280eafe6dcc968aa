"""Ink on a slide: pen of any colour, and what is black (scanner borders, unscanned areas, black pen).

Figures are optical densities (OD = −log10 of transmitted light), where stains add up and ratios between the channels do not depend on
how dark they are. Two facts tell ink from stains. Its colour: haematoxylin, eosin and DAB absorb green about as much as red, or more;
eosin and blood hardly absorb red. And its texture: ink is a film that lies out of focus on top of the coverslip, so it is smooth at
8 µm a pixel, and on tissue it adds density but no texture. The combination of rules and their thresholds are our choice, set on
pixels of 8 µm.
"""

from __future__ import annotations

import cv2
import numpy as np

FILM = 0.03  # relative texture of a smooth film; tissue in focus has 0.05 and more
COVERED = 0.065  # the same of tissue under ink
USUAL = 0.075  # median texture of tissue from which on a slide is in focus
NEUTRAL = 0.75  # least ratio of the weakest to the strongest channel of black and grey
BLACK_OD = (0.4, 0.9)  # in every channel: of what is neutral; of anything, as the hue of black is noise
STRIP = 32  # rows
OD = (-np.log10((np.arange(256) + 1) / 256)).astype(np.float32)  # of a grey level on white glass


def disc(diameter: float) -> np.ndarray:
    """Structuring element of about `diameter` pixels; a single pixel below 2."""
    size = 2 * max(1, round(diameter / 2)) + 1 if diameter >= 2 else 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def fine_deviation(values: np.ndarray) -> np.ndarray:
    """float32 [H, W]: mean absolute deviation from the 3 × 3 surroundings, in a window of 5 pixels."""
    return cv2.blur(cv2.absdiff(values, cv2.blur(values, (3, 3))), (5, 5))


def sharpness(rgb: np.ndarray, texture: np.ndarray) -> float:
    """Between 0 and 1: the factor by which the thresholds of smoothness are lowered on a slide that is out of focus.

    Judged where eosin is sure; 1 where there is none. `rgb`: white-balanced, uint8 [H, W, 3]; `texture` as for `find_ink`.
    """
    red, green, blue = cv2.split(cv2.LUT(np.ascontiguousarray(rgb[::2, ::2]), OD))  # every fourth pixel tells as much
    eosin = (green > 0.1) & (red < 0.5 * green) & (blue < 0.7 * green)
    return min(1.0, float(np.median(texture[::2, ::2][eosin])) / USUAL) if eosin.any() else 1.0


def find_ink(rgb: np.ndarray, texture: np.ndarray, sharp: float) -> tuple[np.ndarray, np.ndarray]:
    """Coloured ink and black, bool [H, W] each, of a white-balanced image uint8 [H, W, 3].

    `texture` [H, W]: `fine_deviation` of the mean density, relative to it.

    Colours that no stain has are ink; ambiguous ones (blue, violet, pale red) are where they are smooth, the more so the less `sharp`
    the slide is (`sharpness`). The faint rim of a stroke is ink too, but only beside a full stroke.
    """
    strong, rim, black = (np.empty(texture.shape, bool) for _ in range(3))
    for top in range(0, len(texture), STRIP):  # strips that fit the processor's cache: three times as fast
        rows = slice(top, top + STRIP)
        strong[rows], rim[rows], black[rows] = _classes(cv2.LUT(rgb[rows], OD), texture[rows], sharp)
    full = cv2.morphologyEx(strong.view(np.uint8), cv2.MORPH_OPEN, disc(3))
    if not full.any():
        return np.zeros_like(black), black
    return (rim & cv2.dilate(full, disc(13)).astype(bool)) | cv2.dilate(full, disc(5)).astype(bool), black


def _classes(density: np.ndarray, texture: np.ndarray, sharp: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of densities [H, W, 3] that are surely ink, that may be the rim of a stroke, and that are black, bool [H, W] each."""
    red, green, blue = cv2.split(density)
    weakest, strongest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    neutral = weakest > NEUTRAL * strongest
    black = (neutral & (weakest > BLACK_OD[0])) | (weakest > BLACK_OD[1])
    bluish = red > 1.6 * green
    reddish = (red < 0.16 * green) & (blue > 0.55 * green)
    strong = black | (bluish & (red > 0.15)) | (reddish & (green > 0.6))
    film, covered = texture < FILM * sharp, texture < COVERED * sharp
    strong |= film & (red > 0.15) & (red > 0.5 * green)
    strong |= covered & (red > 0.4) & (red > 0.4 * green)
    strong |= film & reddish & (green > 0.25)
    rim = bluish | neutral | film | (covered & (red > 0.2)) | ((red > 0.25) & (red > 0.5 * green))
    return strong, rim, black
