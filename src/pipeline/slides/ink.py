"""Ink on a slide: pen of any colour, and what is black (scanner borders, unscanned areas, black pen).

Figures are optical densities (OD = −log10 of transmitted light), where stains add up and ratios between the channels do not depend on
how dark they are. Two facts tell ink from stains. Its colour: haematoxylin, eosin and DAB absorb green about as much as red, or more;
eosin and blood hardly absorb red. And its texture: ink is a film that lies out of focus on top of the coverslip, so it is smooth at
8 µm a pixel, and on tissue it adds density but no texture. A thin stroke is all edge and has texture; over tissue it is told by being
dense and beyond the hues of the slide's own stains. The combination of rules and their thresholds are our choice, set on
pixels of 8 µm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

Channels = Sequence[np.ndarray]  # red, green and blue, [H, W] each


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
    around = cv2.blur(values, (3, 3))
    return cv2.blur(cv2.absdiff(values, around, dst=around), (5, 5))


def usual(channels: Channels, texture: np.ndarray) -> Usual:
    """The `Usual` of a white-balanced image; `channels`, `texture` as for `find_ink`."""
    texture = np.ascontiguousarray(texture[::3, ::3])  # every ninth pixel tells as much
    red, green, blue = (cv2.LUT(np.ascontiguousarray(channel[::3, ::3]), OD) for channel in channels)
    coloured = green > 0.1
    stained = coloured & (texture > COVERED)
    eosin = coloured & (red < 0.5 * green) & (blue < 0.7 * green)
    sharp = min(1.0, float(np.median(texture[eosin])) / USUAL) if eosin.any() else 1.0
    if not stained.any():
        return Usual(sharp, 0.0, 0.0)
    return Usual(sharp, *(float(np.percentile((channel / np.maximum(green, 0.1))[stained], 90)) for channel in (red, blue)))


def find_ink(channels: Channels, texture: np.ndarray, slide: Usual) -> tuple[np.ndarray, np.ndarray]:
    """Coloured ink and black, bool [H, W] each, of a white-balanced image whose red, green and blue are uint8 [H, W] each.

    `texture` [H, W]: `fine_deviation` of the mean density, relative to it.

    Colours that no stain has are ink; ambiguous ones (blue, violet, pale red) are where they are smooth, the more so the less sharp
    the slide is, and where they are dense and beyond the slide's own stains. From there a stroke is followed over the tissue as far as
    it is dense and off the stains' hue. The faint rim of a stroke is ink too, but only beside a full stroke.
    """
    strong, black = _by_strips(_surely_ink, channels, texture, slide)
    full = cv2.morphologyEx(strong.view(np.uint8), cv2.MORPH_OPEN, disc(3))
    if not full.any():
        return np.zeros_like(black), black
    rim, dense = _by_strips(_perhaps_ink, channels, texture, slide)
    full |= _followed(full, dense)
    return (rim & cv2.dilate(full, disc(13)).astype(bool)) | cv2.dilate(full, disc(5)).astype(bool), black


def _by_strips(
    classify: Callable[[Channels, np.ndarray, Usual], tuple[np.ndarray, np.ndarray]], channels: Channels, texture: np.ndarray, slide: Usual
) -> tuple[np.ndarray, np.ndarray]:
    """Two classes of pixels, bool [H, W] each, found in strips of the densities that fit the processor's cache: three times as fast."""
    first, second = np.empty(texture.shape, bool), np.empty(texture.shape, bool)
    for top in range(0, len(texture), STRIP):
        rows = slice(top, top + STRIP)
        first[rows], second[rows] = classify([cv2.LUT(channel[rows], OD) for channel in channels], texture[rows], slide)
    return first, second


def _followed(full: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: what of `dense` hangs together with a full stroke, thin bridges cut; a dark lymph follicle that it touches too."""
    wide = cv2.morphologyEx(dense.view(np.uint8), cv2.MORPH_OPEN, disc(3))
    count, labels = cv2.connectedComponents(wide, connectivity=8)
    reached = np.zeros(count, np.uint8)
    reached[labels[full.view(bool)]] = 1
    reached[0] = 0
    return reached[labels]


def _surely_ink(density: Channels, texture: np.ndarray, slide: Usual) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of densities [H, W] a channel that are surely ink, and those of them that are black, bool [H, W] each."""
    red, green, blue = density
    weakest, strongest = _extremes(density)
    black = ((weakest > BLACK_OD[0]) & (weakest > NEUTRAL * strongest)) | (weakest > BLACK_OD[1])
    reddish = (red < 0.16 * green) & (blue > 0.55 * green)
    strong = black | ((red > 0.15) & (red > 1.6 * green)) | (reddish & (green > 0.6))
    film, covered = texture < FILM * slide.sharp, texture < COVERED * slide.sharp
    strong |= film & (red > 0.15) & (red > 0.5 * green)
    strong |= covered & (red > 0.4) & (red > 0.4 * green)
    strong |= film & reddish & (green > 0.25)
    # a stain stays within its slide's hues; ink adds red, or all channels, to them
    strong |= (red > INKED_OD) & (red > max(0.95, 1.25 * slide.red) * green + 0.05)
    strong |= (weakest > INKED_OD + 0.05) & (weakest > max(0.68, 1.05 * slide.red, 1.05 * slide.blue) * strongest)
    return strong, black


def _perhaps_ink(density: Channels, texture: np.ndarray, slide: Usual) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of densities [H, W] a channel that may be the rim of a stroke, and that a stroke may be followed over, bool [H, W] each."""
    red, green, _ = density
    weakest, strongest = _extremes(density)
    neutral = weakest > NEUTRAL * strongest
    film, covered = texture < FILM * slide.sharp, texture < COVERED * slide.sharp
    rim = ((red > 1.6 * green) | neutral | film) & (strongest > GLASS_OD)
    rim |= (covered & (red > 0.2)) | ((red > 0.25) & (red > max(0.5, slide.red) * green))
    dense = ((red > INKED_OD) & (red > max(0.6, slide.red) * green)) | (neutral & (red > 0.25))
    return rim, dense


def _extremes(density: Channels) -> tuple[np.ndarray, np.ndarray]:
    """[H, W] each: density of the weakest and of the strongest channel."""
    red, green, blue = density
    return cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
