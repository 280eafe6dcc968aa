"""Micrometres a pixel: where a slide's resolution is stated, and which statement is believed."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.errors import InputError

log = logging.getLogger(__name__)

PLAUSIBLE_MPP = (0.05, 4.0)  # µm per pixel: beyond a 200x scan and a 2.5x scan
MPP_TIMES_POWER = 10.0  # a 40x scan has 0.25 µm per pixel
UNEVEN = (1.02, 1.20)  # ratio of the two directions: from here warned of, from here refused (our choice)
MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "in": 25400.0}
MICROMETRES |= {"inch": 25400.0, "centimeter": 1e4, "millimeter": 1e3, "micron": 1.0, "\\u00b5m": 1.0, "1": 25400.0, "2": 25400.0, "3": 1e4}
PRINT_DPI = (72, 75, 90, 96, 100, 120, 144, 150, 180, 200, 220, 240, 250, 254, 300, 350, 360, 400, 600, 720, 1200, 2400)
NUMBER = re.compile(r"\s*[\"']?\s*([+-]?[0-9]*[.,]?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*[xX×]?\s*[\"']?\s*")
DICOM_SPACING = "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing"
VENDOR_TAGS = (  # property for x, property for y, µm of its unit
    ("aperio.MPP", "aperio.MPP", 1.0),
    ("ventana.ScanRes", "ventana.ScanRes", 1.0),
    (*(f"mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_{axis}" for axis in "XY"), 1.0),
    (f"{DICOM_SPACING}[1]", f"{DICOM_SPACING}[0]", 1e3),  # between columns, between rows, in mm
)
POWER_TAGS = ("openslide.objective-power", "aperio.AppMag", "hamamatsu.SourceLens", "leica.objective", "ventana.Magnification")
POWER_TAGS += ("mirax.GENERAL.OBJECTIVE_MAGNIFICATION", "trestle.Objective Power")
SLIPS = (  # what the figure may be instead, and µm per pixel if it is
    ("in nanometres", lambda value: value / 1e3),
    ("in millimetres", lambda value: value * 1e3),
    ("in metres", lambda value: value * 1e6),
    ("in pixels per centimetre", lambda value: 1e4 / value),
    ("an objective power", lambda value: MPP_TIMES_POWER / value),
)


@dataclass(frozen=True)
class Resolution:
    """Micrometres a level-0 pixel, where the figure comes from, and the objective power that the file states (may be None).

    source: ``table`` (slide table), ``header`` (openslide.mpp-x and -y), ``vendor`` (a scanner's own tag, OME-XML), ``tiff``
    (resolution tags), ``objective-power`` (10 / power) or ``cohort`` (`slides.mpp`).
    """

    mpp: float
    source: str
    objective_power: float | None


def resolve(properties: Mapping[str, str], slide_id: str, table_mpp: float | None = None, default_mpp: float | None = None) -> Resolution:
    """The resolution of a slide: slide table, openslide.mpp-x and -y, a scanner's tag, TIFF tags, 10 / objective power, cohort.

    A person's figure is believed. The file's is refused outside 0.05–4 µm per pixel; figures of a print (72, 300, … dpi) are no
    statement about the specimen and passed over. Where x and y differ their geometric mean is taken, above 20 % none.
    Raises `InputError` when nothing is known or the file's figure cannot be right.
    """
    power = _power(properties)
    if _given(table_mpp):
        return Resolution(_positive(table_mpp, slide_id), "table", power)
    for x, y, source in _statements(properties, power):
        mpp = _checked(x, y, source, slide_id)
        if power and not 0.5 < mpp * power / MPP_TIMES_POWER < 2:
            log.warning("slide %s: %g µm per pixel does not go with its %gx objective; the former is used", slide_id, mpp, power)
        return Resolution(mpp, source, power)
    if _given(default_mpp):
        return Resolution(_positive(default_mpp, slide_id), "cohort", power)
    raise InputError(
        "no resolution in the file",
        slide=slide_id,
        expected="openslide.mpp-x, a scanner's or TIFF tag, or openslide.objective-power",
        remedy="Add an mpp column for this slide in the slide table or `slides.mpp` in the cohort file.",
    )


def _statements(properties: Mapping[str, str], power: float | None) -> Iterator[tuple[float, float, str]]:
    """What the file says, as µm per pixel in x and y and its source, in the order in which it is believed."""
    get = properties.get
    found = [(_number(get("openslide.mpp-x")), _number(get("openslide.mpp-y")), "header")]
    found += [(_scaled(get(x), unit), _scaled(get(y), unit), "vendor") for x, y, unit in VENDOR_TAGS]
    found += [(*pair, "vendor") for pair in (_philips(properties), _hamamatsu(properties), _ome(properties))]
    found += [(*_tiff(properties), "tiff")]
    for x, y, source in found:
        if x is not None or y is not None:
            x, y = x if x is not None else y, y if y is not None else x
            if not (_is_print(x) and _is_print(y)):
                yield x, y, source
    if power is not None:
        yield MPP_TIMES_POWER / power, MPP_TIMES_POWER / power, "objective-power"


def _checked(x: float, y: float, source: str, slide_id: str) -> float:
    """Geometric mean of a statement that can be right; raises `InputError` for one that cannot."""
    mpp = x if x == y else math.sqrt(x) * math.sqrt(y)  # the product of the extremes would not be finite
    if not all(PLAUSIBLE_MPP[0] <= value <= PLAUSIBLE_MPP[1] for value in (x, y)):
        wrong = next(value for value in (x, y) if not PLAUSIBLE_MPP[0] <= value <= PLAUSIBLE_MPP[1])
        hint = _slip(wrong) if source != "objective-power" else ""
        raise InputError(
            "implausible resolution in the file",
            slide=slide_id,
            found=f"{wrong:g} µm per pixel ({source})",
            expected=f"{PLAUSIBLE_MPP[0]:g} to {PLAUSIBLE_MPP[1]:g}",
            remedy="Add an mpp column with the right value for this slide in the slide table." + hint,
        )
    ratio = max(x, y) / min(x, y)
    if ratio > UNEVEN[1]:
        raise InputError(
            "the pixels are not square",
            slide=slide_id,
            found=f"{x:g} × {y:g} µm per pixel ({source})",
            expected=f"at most {UNEVEN[1] - 1:.0%} apart",
            remedy="Add an mpp column for this slide in the slide table if one figure is wrong; else resample the slide.",
        )
    if ratio > UNEVEN[0]:
        log.warning("slide %s: %g × %g µm per pixel; the geometric mean %.4g is used", slide_id, x, y, mpp)
    return mpp


def _slip(figure: float) -> str:
    """What an implausible figure may be in truth, as a sentence; empty where nothing fits."""
    for kind, to_mpp in SLIPS:
        if _plausible(to_mpp(figure)):
            return f" Perhaps it is {kind}: that would be {to_mpp(figure):g} µm."
    return ""


def _philips(properties: Mapping[str, str]) -> tuple[float | None, float | None]:
    """``"0.000227" "0.000227"``: mm between rows, mm between columns."""
    text = properties.get("philips.DICOM_PIXEL_SPACING") or ""
    spacings = [_scaled(part, 1e3) for part in text.replace('"', " ").replace("\\", " ").split()]
    return (spacings[1], spacings[0]) if len(spacings) == 2 else (None, None)


def _hamamatsu(properties: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Width and height of the scan in nm (VMS), or pixels a unit, a centimetre unless another is named (NDPI)."""
    sizes = [_scaled(properties.get(f"hamamatsu.Physical{side}"), 1e-3) for side in ("Width", "Height")]
    pixels = [_number(properties.get(f"openslide.level[0].{side}")) for side in ("width", "height")]
    if None not in (*sizes, *pixels):
        return sizes[0] / pixels[0], sizes[1] / pixels[1]  # type: ignore[operator, return-value]
    unit = MICROMETRES.get((properties.get("hamamatsu.ResolutionUnit") or "3").strip().lower(), 1e4)
    x, y = (_number(properties.get(f"hamamatsu.{axis}Resolution")) for axis in "XY")
    return _inverse(x, unit), _inverse(y, unit)


def _ome(properties: Mapping[str, str]) -> tuple[float | None, float | None]:
    """PhysicalSizeX and Y of the first image of OME-XML, in µm unless another unit is named."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", _description(properties))
    attributes = dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', pixels[0])) if pixels else {}
    sizes = []
    for axis in "XY":
        unit = attributes.get(f"PhysicalSize{axis}Unit", "µm").replace("&#181;", "µ").replace("&#xB5;", "µ").strip()
        sizes.append(_scaled(attributes.get(f"PhysicalSize{axis}"), MICROMETRES.get(unit)))
    return sizes[0], sizes[1]


def _tiff(properties: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Pixels an inch or a centimetre; ImageJ names its unit in the description instead."""
    unit = MICROMETRES.get((properties.get("tiff.ResolutionUnit") or "").strip().lower())
    description = _description(properties)
    if description.startswith("ImageJ=") and (named := re.search(r"^unit=(.+?)\s*$", description, re.MULTILINE)):
        unit = MICROMETRES.get(named[1].lower())
    x, y = (_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
    return _inverse(x, unit), _inverse(y, unit)


def _description(properties: Mapping[str, str]) -> str:
    return properties.get("tiff.ImageDescription") or properties.get("openslide.comment") or ""


def _power(properties: Mapping[str, str]) -> float | None:
    nominal = re.search(r'NominalMagnification="([^"]*)"', _description(properties))
    stated = [_number(properties.get(tag)) for tag in POWER_TAGS] + [_number(nominal[1]) if nominal else None]
    return next((power for power in stated if power is not None), None)


def _number(text: str | None) -> float | None:
    """A positive number of free text (``0,2520``, ``40x``, ``"0.25"``), None where it is none."""
    match = NUMBER.fullmatch(text or "")
    value = float(match[1].replace(",", ".")) if match else 0.0
    return value if 0 < value < math.inf else None


def _scaled(text: str | None, unit: float | None) -> float | None:
    value = _number(text)
    return value * unit if value is not None and unit is not None else None


def _inverse(per_unit: float | None, unit: float | None) -> float | None:
    return unit / per_unit if per_unit is not None and unit is not None else None


def _is_print(mpp: float) -> bool:
    """Whether this is the resolution of a print or a screen (rounded to whole pixels a centimetre by some)."""
    return any(math.isclose(25400 / mpp, dpi, rel_tol=0.005) for dpi in PRINT_DPI)


def _plausible(mpp: float) -> bool:
    return PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]


def _given(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _positive(value: float, slide_id: str) -> float:
    if not 0 < value < math.inf:
        raise InputError("resolution is not positive", slide=slide_id, column="mpp", found=value, expected="µm per pixel, above 0")
    return float(value)
