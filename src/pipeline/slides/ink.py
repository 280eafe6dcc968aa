"""Ink on a slide: pen of any colour, and what is black (scanner borders, unscanned areas, black pen).

Figures are optical densities (OD = −log10 of transmitted light), where stains add up and ratios between the channels do not depend on
how dark they are. Two facts tell ink from stains. Its colour: haematoxylin, eosin and DAB absorb green about as much as red, or more;
eosin and blood hardly absorb red. And its texture: ink is a film that lies out of focus on top of the coverslip, so it is smooth at
8 µm a pixel, and on tissue it adds density but no texture. A thin stroke is all edge and has texture; over tissue it is told by being
dense and beyond the hues of the slide's own stains. The combination of rules and their thresholds are our choice, set on
pixels of 8 µm.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

FILM = 0.03  # relative texture of a smooth film; tissue in focus has 0.05 and more
COVERED = 0.065  # the same of tissue under ink
USUAL = 0.075  # median texture of tissue from which on a slide is in focus
NEUTRAL = 0.75  # least ratio of the weakest to the strongest channel of black and grey
BLACK_OD = (0.4, 0.9)  # in every channel: of what is neutral; of anything, as the hue of black is noise
GLASS_OD = 0.03  # in every channel, up to which a pixel is clear
INKED_OD = 0.4  # of red from which on a stroke is told from tissue by its hue, however textured
STRIP = 32  # rows
OD = (-np.log10((np.arange(256) + 1) / 256)).astype(np.float32)  # of a grey level on white glass


@dataclass(frozen=True)
class Usual:
    """What is usual on a slide, judged where it has texture, so not on ink.

    sharp: between 0 and 1, the factor by which the thresholds of smoothness are lowered on a slide that is out of focus, judged where
    eosin is sure; 1 where there is none. red, blue: density of the channel over that of green, its ninth decile in stained tissue.
    """

    sharp: float
    red: float
    blue: float


def disc(diameter: float) -> np.ndarray:
    """Structuring element of about `diameter` pixels; a single pixel below 2."""
    size = 2 * max(1, round(diameter / 2)) + 1 if diameter >= 2 else 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def fine_deviation(values: np.ndarray) -> np.ndarray:
    """float32 [H, W]: mean absolute deviation from the 3 × 3 surroundings, in a window of 5 pixels."""
    return cv2.blur(cv2.absdiff(values, cv2.blur(values, (3, 3))), (5, 5))


def usual(rgb: np.ndarray, texture: np.ndarray) -> Usual:
    """The `Usual` of a white-balanced image uint8 [H, W, 3]; `texture` as for `find_ink`."""
    texture = texture[::3, ::3]  # every ninth pixel tells as much
    red, green, blue = cv2.split(cv2.LUT(np.ascontiguousarray(rgb[::3, ::3]), OD))
    stained = (green > 0.1) & (texture > COVERED)
    eosin = (green > 0.1) & (red < 0.5 * green) & (blue < 0.7 * green)
    sharp = min(1.0, float(np.median(texture[eosin])) / USUAL) if eosin.any() else 1.0
    if not stained.any():
        return Usual(sharp, 0.0, 0.0)
    return Usual(sharp, *(float(np.percentile(channel[stained] / green[stained], 90)) for channel in (red, blue)))


def find_ink(rgb: np.ndarray, texture: np.ndarray, slide: Usual) -> tuple[np.ndarray, np.ndarray]:
    """Coloured ink and black, bool [H, W] each, of a white-balanced image uint8 [H, W, 3].

    `texture` [H, W]: `fine_deviation` of the mean density, relative to it.

    Colours that no stain has are ink; ambiguous ones (blue, violet, pale red) are where they are smooth, the more so the less sharp
    the slide is, and where they are dense and beyond the slide's own stains. From there a stroke is followed over the tissue as far as
    it is dense and off the stains' hue. The faint rim of a stroke is ink too, but only beside a full stroke.
    """
    strong, rim, black, dense = (np.empty(texture.shape, bool) for _ in range(4))
    for top in range(0, len(texture), STRIP):  # strips that fit the processor's cache: three times as fast
        rows = slice(top, top + STRIP)
        strong[rows], rim[rows], black[rows], dense[rows] = _classes(cv2.LUT(rgb[rows], OD), texture[rows], slide)
    full = cv2.morphologyEx(strong.view(np.uint8), cv2.MORPH_OPEN, disc(3))
    if not full.any():
        return np.zeros_like(black), black
    full |= _followed(full, dense)
    return (rim & cv2.dilate(full, disc(13)).astype(bool)) | cv2.dilate(full, disc(5)).astype(bool), black


def _followed(full: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: what of `dense` hangs together with a full stroke, thin bridges cut; a dark lymph follicle that it touches too."""
    wide = cv2.morphologyEx(dense.view(np.uint8), cv2.MORPH_OPEN, disc(3))
    count, labels = cv2.connectedComponents(wide, connectivity=8)
    reached = np.zeros(count, np.uint8)
    reached[labels[full.view(bool)]] = 1
    reached[0] = 0
    return reached[labels]


def _classes(density: np.ndarray, texture: np.ndarray, slide: Usual) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of densities [H, W, 3] that are surely ink, that may be the rim of a stroke, that are black, and that a stroke may be
    followed over, bool [H, W] each."""
    red, green, blue = cv2.split(density)
    weakest, strongest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    neutral = weakest > NEUTRAL * strongest
    black = (neutral & (weakest > BLACK_OD[0])) | (weakest > BLACK_OD[1])
    bluish = red > 1.6 * green
    reddish = (red < 0.16 * green) & (blue > 0.55 * green)
    strong = black | (bluish & (red > 0.15)) | (reddish & (green > 0.6))
    film, covered = texture < FILM * slide.sharp, texture < COVERED * slide.sharp
    strong |= film & (red > 0.15) & (red > 0.5 * green)
    strong |= covered & (red > 0.4) & (red > 0.4 * green)
    strong |= film & reddish & (green > 0.25)
    inked = red > INKED_OD  # a stain stays within its slide's hues; ink adds red, or all channels, to them
    strong |= inked & (red > max(0.95, 1.25 * slide.red) * green + 0.05)
    strong |= (weakest > INKED_OD + 0.05) & (weakest > max(0.68, 1.05 * slide.red, 1.05 * slide.blue) * strongest)
    dense = (inked & (red > max(0.6, slide.red) * green)) | (neutral & (red > 0.25))
    rim = (bluish | neutral | film) & (strongest > GLASS_OD)
    rim |= (covered & (red > 0.2)) | ((red > 0.25) & (red > max(0.5, slide.red) * green))
    return strong, rim, black, dense
