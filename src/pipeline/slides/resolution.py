"""Micrometres a pixel: where a slide's resolution is stated, and which statement is believed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import InputError

log = logging.getLogger(__name__)

PLAUSIBLE_MPP = (0.05, 4.0)  # µm per pixel: beyond a 200x scan and a 2.5x scan
MPP_TIMES_POWER = 10.0  # a 40x scan has 0.25 µm per pixel


@dataclass(frozen=True)
class Resolution:
    """Micrometres a level-0 pixel, where the figure comes from, and the objective power that the file states (may be None).

    source: ``table`` (slide table), ``header`` (openslide.mpp-x), ``objective-power`` (10 / power) or ``cohort`` (`slides.mpp`).
    """

    mpp: float
    source: str
    objective_power: float | None


def resolve(properties: Mapping[str, str], slide_id: str, table_mpp: float | None = None, default_mpp: float | None = None) -> Resolution:
    """The resolution of a slide: slide table, then openslide.mpp-x, then 10 / objective power, then the cohort's default.

    The two figures of the file are refused outside 0.05–4 µm per pixel; a person's figure is believed.
    Raises `InputError` when nothing is known or the file's figure is implausible.
    """
    power = _number(properties.get("openslide.objective-power"))
    header = _number(properties.get("openslide.mpp-x"))
    if _given(table_mpp):
        return Resolution(_positive(table_mpp, slide_id), "table", power)
    for mpp, source in ((header, "header"), (power and MPP_TIMES_POWER / power, "objective-power")):
        if mpp is None:
            continue
        if not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
            raise InputError(
                "implausible resolution in the file",
                slide=slide_id,
                found=f"{mpp:g} µm per pixel ({source})",
                expected=f"{PLAUSIBLE_MPP[0]:g} to {PLAUSIBLE_MPP[1]:g}",
                remedy="Add an mpp column with the right value for this slide in the slide table.",
            )
        if power and not 0.5 < mpp * power / MPP_TIMES_POWER < 2:
            log.warning("slide %s: %g µm per pixel does not go with its %gx objective; the former is used", slide_id, mpp, power)
        return Resolution(mpp, source, power)
    if _given(default_mpp):
        return Resolution(_positive(default_mpp, slide_id), "cohort", power)
    raise InputError(
        "no resolution in the file",
        slide=slide_id,
        expected="openslide.mpp-x or openslide.objective-power",
        remedy="Add an mpp column for this slide in the slide table or `slides.mpp` in the cohort file.",
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _given(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _positive(value: float, slide_id: str) -> float:
    if not 0 < value < math.inf:
        raise InputError("resolution is not positive", slide=slide_id, column="mpp", found=value, expected="µm per pixel, above 0")
    return float(value)
