"""A handcrafted description of an H&E patch: stains, nuclei, texture. Needs no weights, no network, no GPU.

Every number is of order 1 and unchanged when the patch is mirrored or turned by 90°. The choice of measures is ours; the stains
are separated with the fixed matrix of Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23 (2001).
"""

from __future__ import annotations

import cv2
import numpy as np

STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])  # optical density of haematoxylin and eosin in R, G, B
LOW, HIGH = -0.25, 2.25  # range of densities that 8 bits span
LEVELS = np.linspace(LOW, HIGH, 256)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SCALES = 4  # octaves of the band-pass pyramid: blobs of about 2, 4, 8, 16 pixels
LAGS = (1, 2, 4, 8)
NUCLEUS_BOUNDS = (0.35, 0.9)  # density of haematoxylin between which Otsu's threshold may fall
SMALLEST_NUCLEUS = 12  # pixels
GLASS_DENSITY = 0.06
TINY = 1e-6

STEPS = 255 / (HIGH - LOW)
AROUND = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))  # the neighbours of a pixel, clockwise

_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)


def _unmixing() -> np.ndarray:
    """[4, 4]: densities (R, G, B, 1) to haematoxylin, eosin, the residual (the direction that neither absorbs) and mean density, 8 bits."""
    unit = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    residual = np.cross(*unit)
    unmix = np.linalg.inv(np.stack([*unit, residual / np.linalg.norm(residual)])).T
    amounts = np.concatenate([unmix, np.full((1, 3), 1 / 3)])
    return np.concatenate([amounts * STEPS, np.full((4, 1), -LOW * STEPS)], axis=1).astype(np.float32)


_UNMIX = _unmixing()


def _pattern_classes() -> np.ndarray:
    """[256]: number of set bits of a code with at most two changes around the circle, else 9."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    changes = (bits != np.roll(bits, 1, axis=1)).sum(1)
    return np.where(changes <= 2, bits.sum(1), 9)


_PATTERN = _pattern_classes()


def describe(patches: np.ndarray) -> np.ndarray:
    """float32 [B, WIDTH] of patches uint8 [B, H, W, 3] (H, W ≥ 32)."""
    if not len(patches):
        return np.zeros((0, WIDTH), np.float32)
    return np.stack([_describe(patch) for patch in patches])


def _describe(rgb: np.ndarray) -> np.ndarray:
    density = cv2.LUT(rgb, _DENSITY)
    stains, overall = (_eight_bits(cv2.transform(density, rows)) for rows in (_UNMIX[:3], _UNMIX[3:]))
    planes = [*cv2.split(stains), overall]
    haematoxylin, eosin = planes[:2]
    histograms = [_histogram(plane) for plane in planes]
    numbers = [
        *map(_distribution, histograms),
        [histograms[-1][LEVELS < GLASS_DENSITY].sum(), _correlation(haematoxylin, eosin)],
        _nuclei(haematoxylin, eosin),
        _bands(haematoxylin),
        _gradients(haematoxylin),
        _gradients(eosin),
        _co_occurrence(haematoxylin),
        _binary_patterns(haematoxylin),
    ]
    return np.concatenate(numbers).astype(np.float32)


def _eight_bits(amounts: np.ndarray) -> np.ndarray:
    return cv2.add(amounts, (0.0, 0.0, 0.0, 0.0), dtype=cv2.CV_8U)  # rounds, and keeps to 0…255


def _histogram(plane: np.ndarray) -> np.ndarray:
    return cv2.calcHist([plane], [0], None, [256], [0, 256]).reshape(256).astype(np.float64) / plane.size


def _distribution(weights: np.ndarray) -> list[float]:
    """[8]: mean, deviation, bounded skewness and quantiles of a plane of densities, from its histogram (exact to 1/100)."""
    mean = weights @ LEVELS
    deviation = np.sqrt(max(weights @ (LEVELS - mean) ** 2, 0.0))
    skewness = weights @ (LEVELS - mean) ** 3 / (deviation**3 + TINY)
    quantiles = LEVELS[np.searchsorted(np.cumsum(weights), np.array(QUANTILES) - 1e-9)]
    return [mean, 2 * deviation, np.tanh(skewness / 3), *quantiles]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    (mean_a, deviation_a), (mean_b, deviation_b) = (map(np.ndarray.item, cv2.meanStdDev(x)) for x in (a, b))
    covariance = cv2.mean(cv2.multiply(a, b, dtype=cv2.CV_32F))[0] - mean_a * mean_b
    return covariance / (deviation_a * deviation_b + 1)


def _nuclei(haematoxylin: np.ndarray, eosin: np.ndarray) -> list[float]:
    """[10]: what is dark in haematoxylin: threshold, share, count, size (mean, spread, largest), shape, stain inside and outside."""
    otsu, _ = cv2.threshold(haematoxylin, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = float(np.clip(otsu / STEPS + LOW, *NUCLEUS_BOUNDS))
    mask = cv2.medianBlur(cv2.compare(haematoxylin, (threshold - LOW) * STEPS, cv2.CMP_GT), 3)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    blobs = stats[1:][stats[1:, cv2.CC_STAT_AREA] >= SMALLEST_NUCLEUS].astype(np.float64)
    inside, pink = (cv2.mean(x, mask)[0] / STEPS for x in (haematoxylin, eosin))
    outside = cv2.mean(haematoxylin, ~mask)[0] / STEPS
    shape = [0.0] * 5
    if len(blobs):
        area = blobs[:, cv2.CC_STAT_AREA]
        box = blobs[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
        size = np.log2(area) / 8
        shape = [size.mean(), 4 * size.std(), area.max() / mask.size, (box.min(1) / box.max(1)).mean(), (area / box.prod(1)).mean()]
    return [threshold, cv2.countNonZero(mask) / mask.size, len(blobs) * 400 / mask.size, *shape, inside - outside, pink]


def _bands(plane: np.ndarray) -> list[float]:
    """[12]: at four octaves the energy of the band-pass, the share of marked blobs and the mean height of what is above zero."""
    numbers: list[float] = []
    plane = cv2.multiply(plane, 1 / STEPS, dtype=cv2.CV_32F)
    for _ in range(SCALES):
        smooth = cv2.GaussianBlur(plane, (0, 0), 1.6, borderType=cv2.BORDER_REFLECT)
        band = plane - smooth
        deviation = cv2.norm(band) / np.sqrt(band.size)
        marked = cv2.countNonZero(cv2.compare(band, 0.1, cv2.CMP_GT)) / band.size
        numbers += [5 * deviation, 5 * marked, 10 * cv2.mean(cv2.max(band, 0.0))[0]]
        plane = cv2.resize(smooth, (plane.shape[1] // 2, plane.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return numbers


def _gradients(plane: np.ndarray) -> list[float]:
    """[4]: mean, deviation and 90 % point of the gradient's size, and the share of it that points one way (0 = isotropic)."""
    dx, dy = (cv2.Sobel(plane, cv2.CV_32F, *order, ksize=3, scale=1 / 255, borderType=cv2.BORDER_REFLECT) for order in ((1, 0), (0, 1)))
    size = cv2.magnitude(dx, dy)
    (mean,), (deviation,) = (x[0] for x in cv2.meanStdDev(size))
    cumulated = np.cumsum(_histogram(cv2.convertScaleAbs(size, alpha=64)))
    xx, yy, xy = (cv2.mean(cv2.multiply(a, b))[0] for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    coherence = np.hypot(xx - yy, 2 * xy) / (xx + yy + TINY)
    return [2 * mean, 2 * deviation, np.searchsorted(cumulated, 0.9) / 64, coherence]


def _co_occurrence(plane: np.ndarray) -> list[float]:
    """[8]: contrast and correlation of pixels 1, 2, 4, 8 apart (Haralick 1973, from differences), mean of both directions."""
    variance = cv2.meanStdDev(plane)[1].item() ** 2 / STEPS**2
    numbers: list[float] = []
    for lag in LAGS:
        pairs = ((plane[lag:], plane[:-lag]), (plane[:, lag:], plane[:, :-lag]))
        contrast = sum(cv2.norm(a, b, cv2.NORM_L2SQR) / a.size for a, b in pairs) / (2 * STEPS**2)
        numbers += [2 * np.sqrt(contrast), 1 - contrast / (2 * variance) if variance > TINY else 0.0]
    return numbers


def _binary_patterns(plane: np.ndarray) -> np.ndarray:
    """[10]: shares of the rotation-invariant uniform local binary patterns of 8 neighbours (Ojala 2002)."""
    inner = plane[1:-1, 1:-1]
    height, width = plane.shape
    code = np.zeros_like(inner)
    for bit, (y, x) in enumerate(AROUND):
        larger = cv2.compare(plane[y : height - 2 + y, x : width - 2 + x], inner, cv2.CMP_GT)  # 0 or 255
        cv2.bitwise_or(code, 1 << bit, dst=code, mask=larger)
    return np.bincount(_PATTERN, weights=_histogram(code), minlength=10)


WIDTH = 4 * (3 + len(QUANTILES)) + 2 + 10 + 3 * SCALES + 2 * 4 + 2 * len(LAGS) + 10
