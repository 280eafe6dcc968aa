"""Drawing of a synthetic haematoxylin-eosin section at 0.5 µm a pixel (our choice throughout; no real slide is used).

A section is painted as two stain concentrations, haematoxylin (nuclei) and eosin (cytoplasm, collagen), and turned into colours by
the Beer-Lambert law with stain vectors after Macenko et al., ISBI 2009 ("A method for normalizing histology slides").
Regions are laid out at 1/8 of the resolution; nuclei and fibres are drawn at full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.demo import nuclei
from pipeline.demo.texture import SHEET, laid, sheets, smooth_field

COARSE = 8  # pixels a pixel of the layout
SIDES = (3000, 4500)
HAEMATOXYLIN = (0.60, 0.72, 0.36)  # absorbance of red, green, blue at concentration 1
EOSIN = (0.15, 0.80, 0.45)
GLASS = (244, 242, 245)
INKS = {"blue": (30, 75, 175), "green": (35, 130, 70), "black": (42, 42, 46)}
PEN_SHARE = 0.25
BAND = 64  # rows coloured at a time


@dataclass(frozen=True)
class Look:
    """What the factor m does to the tumour.

    share: part of the tissue that is tumour. radius: nuclear radius, pixels. spacing: of neighbouring nuclei, pixels.
    darkness: haematoxylin concentration of a nucleus.
    """

    share: float
    radius: float
    spacing: float
    darkness: float

    @classmethod
    def of(cls, m: float) -> Look:
        grade = float(np.clip(m, -2.6, 2.6))
        return cls(share=0.58 + 0.07 * grade, radius=8.6 + 1.1 * grade, spacing=26.5 - 0.7 * grade, darkness=1.15 + 0.14 * grade)


@dataclass(frozen=True)
class Layout:
    """float32 maps [height / 8, width / 8], positive where the tissue, the tumour or a lymphoid aggregate is."""

    tissue: np.ndarray
    tumour: np.ndarray
    lymphoid: np.ndarray

    def at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three maps [N] at full-resolution `points` [N, 2] (row, column)."""
        row, column = (points // COARSE).T
        return self.tissue[row, column], self.tumour[row, column], self.lymphoid[row, column]


def draw_section(m: float, seed: int, sides: tuple[int, int] = SIDES) -> np.ndarray:
    """uint8 RGB [height, width, 3] of a slide whose tumour shows the factor `m`; height and width lie between `sides` pixels."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) * COARSE for side in rng.integers(sides[0] // COARSE, sides[1] // COARSE + 1, 2))
    shape = (height, width)
    look = Look.of(m)
    layout = _lay_out(rng, (height // COARSE, width // COARSE), look.share)
    corner = tuple(rng.integers(0, SHEET, 2).tolist())
    collagen, angle = sheets()["collagen"], sheets()["angle"]
    if rng.random() < 0.5:  # fibres that run mainly down instead of across
        collagen, angle = collagen.T, np.pi / 2 - angle.T
    haematoxylin, eosin = _ground(rng, layout, laid(collagen, shape, corner), laid(sheets()["cytoplasm"], shape, corner))
    _nuclei(rng, haematoxylin, layout, look, np.roll(angle, (-corner[0], -corner[1]), (0, 1)))
    tissue = _tissue(layout, laid(sheets()["ragged"], shape, corner))
    image = _colours(haematoxylin, eosin, tissue, thickness=rng.normal(1, 0.02))
    if rng.random() < PEN_SHARE:
        _pen_mark(rng, image)
    return image


def _lay_out(rng: np.random.Generator, shape: tuple[int, int], share: float) -> Layout:
    """Two to four pieces with ragged outlines, lumina and cracks; `share` of their area is tumour, in nests."""
    row, column = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    pieces = int(rng.integers(2, 5))
    radius = {2: 0.205, 3: 0.185, 4: 0.16}[pieces]
    tissue = np.full(shape, -1, np.float32)
    tilt = rng.uniform(0, np.pi)
    for i in range(pieces):
        angle = tilt + 2 * np.pi * i / pieces
        offset = 0.265 * np.array([np.sin(angle), np.cos(angle)]) + rng.normal(0, 0.02, 2)
        centre, radii = (0.5 + offset) * shape, radius * rng.uniform(0.85, 1.1, 2) * shape
        tissue = np.maximum(tissue, 1 - np.hypot((row - centre[0]) / radii[0], (column - centre[1]) / radii[1]))
    tissue += 0.14 * smooth_field(rng, shape, (80, 35, 15, 7), 0.45)
    tissue = np.minimum(tissue, _outside_lumina(rng, row, column))
    crack = np.abs(smooth_field(rng, shape, (60, 25))) + 0.9 * np.maximum(smooth_field(rng, shape, (110,)) + 0.6, 0)
    tissue = np.minimum(tissue, 3 * (crack - 0.045))
    to_edge = np.minimum.reduce([row, column, shape[0] - 1 - row, shape[1] - 1 - column])
    tissue = np.minimum(tissue, 0.03 * (to_edge - 10))  # nothing touches the edge of the scan
    nests = smooth_field(rng, shape, (70, 30, 14), 0.75)
    tumour = nests - np.quantile(nests[tissue > 0], 1 - share)
    lymphoid = smooth_field(rng, shape, (35, 15)) - 1.55
    return Layout(tissue.astype(np.float32), tumour, lymphoid)


def _outside_lumina(rng: np.random.Generator, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Map that is negative in 6 to 15 roundish holes, most of them 50 to 80 µm across."""
    shape = row.shape
    outside = np.full(shape, np.inf, np.float32)
    for _ in range(int(rng.integers(6, 16))):
        centre, radius = rng.uniform(0.15, 0.85, 2) * shape, rng.choice([6, 8, 10, 14, 24], p=[0.3, 0.3, 0.2, 0.15, 0.05])
        stretch = rng.uniform(0.7, 1.4)
        outside = np.minimum(outside, np.hypot((row - centre[0]) * stretch, (column - centre[1]) / stretch) / radius - 1)
    return outside + 0.12 * smooth_field(rng, shape, (8,))


def _tissue(layout: Layout, ragged: np.ndarray) -> np.ndarray:
    """uint8 mask at full resolution, 0 on glass and 255 in tissue, with a ragged edge a few pixels wide."""
    field = cv2.addWeighted(_enlarged(128 + 500 * layout.tissue, ragged.shape), 1, ragged, 0.6, -0.6 * 128)
    return cv2.LUT(field, np.interp(np.arange(256), (120, 136), (0, 255)).astype(np.uint8))


def _ground(rng: np.random.Generator, layout: Layout, collagen: np.ndarray, cytoplasm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(haematoxylin, eosin) uint8 maps, 100 = concentration 1, of all that is not a nucleus: collagen and tumour cytoplasm."""
    shape = collagen.shape
    edge = np.interp(np.arange(256), (114, 142), (0, 255)).astype(np.uint8)
    tumour = cv2.LUT(_enlarged(128 + 150 * layout.tumour, shape), edge)
    stroma = cv2.bitwise_not(tumour)
    patchy = _enlarged(128 + 22 * smooth_field(rng, layout.tissue.shape, (60, 25)), shape)

    def mixed(in_stroma: np.ndarray, in_tumour: np.ndarray) -> np.ndarray:
        return cv2.add(cv2.multiply(in_stroma, stroma, scale=1 / 255), cv2.multiply(in_tumour, tumour, scale=1 / 255))

    eosin = mixed(cv2.convertScaleAbs(collagen, alpha=0.42, beta=6), cv2.convertScaleAbs(cytoplasm, alpha=0.22, beta=24))
    haematoxylin = mixed(cv2.convertScaleAbs(collagen, alpha=0.05), cv2.convertScaleAbs(cytoplasm, alpha=0.12, beta=8))
    return haematoxylin, cv2.multiply(eosin, patchy, scale=1 / 128)


def _nuclei(rng: np.random.Generator, canvas: np.ndarray, layout: Layout, look: Look, fibres: np.ndarray) -> None:
    """Draw fibroblasts along `fibres` (radians, a repeating sheet), lymphocytes in aggregates, and the tumour cells that show m."""
    any_angle = rng.uniform(0, np.pi, nuclei.VARIANTS)
    steps = np.linspace(-np.pi / 2, np.pi / 2, nuclei.VARIANTS, endpoint=False)
    spindle = nuclei.draw_stamps(rng, 5.4, 1.15, 3.6, steps)
    points = nuclei.grid(rng, canvas.shape, 44, jitter=0.33)
    tissue, tumour, lymphoid = layout.at(points)
    points = points[(tissue > 0) & (tumour < 0) & (rng.random(len(points)) < 0.8)]
    angle = fibres[tuple((points % SHEET).T)] + rng.normal(0, 0.15, len(points))
    which = np.floor((angle + np.pi / 2) / np.pi * nuclei.VARIANTS).astype(int) % nuclei.VARIANTS
    nuclei.press(canvas, points, spindle, which)

    small = nuclei.draw_stamps(rng, 5.6, 1.75, 1.1, any_angle)
    points = nuclei.grid(rng, canvas.shape, 15)
    tissue, tumour, lymphoid = layout.at(points)
    points = points[(tissue > 0) & (tumour < -0.1) & (lymphoid > 0)]
    nuclei.press(canvas, points, small, rng.integers(0, nuclei.VARIANTS, len(points)))

    large = nuclei.draw_stamps(rng, look.radius, look.darkness, 1.25, any_angle)
    points = nuclei.grid(rng, canvas.shape, look.spacing)
    tissue, tumour, lymphoid = layout.at(points)
    points = points[(tissue > 0) & (tumour > 0.02) & (rng.random(len(points)) < 0.95)]
    nuclei.press(canvas, points, large, rng.integers(0, nuclei.VARIANTS, len(points)))


def _colours(haematoxylin: np.ndarray, eosin: np.ndarray, tissue: np.ndarray, thickness: float) -> np.ndarray:
    """RGB by the Beer-Lambert law, glass · exp(-H · haematoxylin - E · eosin), with camera noise.

    Done in bands, so that the intermediate images stay in the processor's cache.
    """
    concentration = np.arange(256)[:, None, None] / 100
    through_h = (255 * np.exp(-concentration * HAEMATOXYLIN)).round().astype(np.uint8)
    through_e = (np.array(GLASS) * np.exp(-concentration * EOSIN)).round().astype(np.uint8)
    height, width = tissue.shape
    image = np.empty((height, width, 3), np.uint8)
    grain = laid(sheets()["grain"], (BAND, width), (0, 0))
    for top in range(0, height, BAND):
        rows = slice(top, top + BAND)
        h, e = (cv2.multiply(stain[rows], tissue[rows], scale=thickness / 255) for stain in (haematoxylin, eosin))
        light = cv2.multiply(cv2.applyColorMap(h, through_h), cv2.applyColorMap(e, through_e), scale=1 / 255)
        cv2.add(light, np.roll(grain, 389 * top, axis=1)[: len(light)], dst=image[rows], dtype=cv2.CV_8U)
    return image


def _pen_mark(rng: np.random.Generator, image: np.ndarray) -> None:
    """A stroke of a felt pen across a corner of the slide, laid over glass and tissue."""
    ink = np.array(INKS[rng.choice(list(INKS))], np.float32) / 255
    height, width = image.shape[:2]
    way = np.linspace(0, 1, 40)[:, None]
    path = rng.uniform(0.06, 0.25, 2) + way * rng.uniform(0.12, 0.4, 2) + 0.03 * np.sin(way * rng.uniform(3, 9, 2) + rng.uniform(0, 6, 2))
    path = np.where(rng.random(2) < 0.5, 1 - path, path)
    points = np.rint(path * (width, height)).astype(np.int32)
    thickness = int(rng.integers(90, 180))
    low, high = points.min(0) - thickness, points.max(0) + thickness
    low, high = np.maximum(low, 0), np.minimum(high, (width, height))
    region = image[low[1] : high[1], low[0] : high[0]]
    stroke = np.zeros(region.shape[:2], np.uint8)
    cv2.polylines(stroke, [(points - low)[:, None]], False, 225, thickness, cv2.LINE_AA)
    stroke = cv2.blur(stroke, (15, 15)).astype(np.float32)[..., None] / 255
    region[:] = region * (1 - stroke * (1 - ink))


def _enlarged(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A coarse map as uint8 at full resolution."""
    coarse = np.clip(values, 0, 255).astype(np.uint8)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
