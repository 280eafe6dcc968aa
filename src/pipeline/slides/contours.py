"""The one owner of GeoJSON: tissue contours in level-0 pixels, as QuPath draws and reads them.

A file that we wrote says so in the properties of its collection, which come first, with a checksum of all that it holds. QuPath writes no
such properties: a file without them was drawn by hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from shapely import make_valid, to_wkb
from shapely.errors import ShapelyError
from shapely.geometry import Polygon, mapping, shape
from shapely.geometry.base import BaseGeometry, BaseMultipartGeometry
from shapely.ops import unary_union

from pipeline.errors import InputError
from pipeline.files import write_text
from pipeline.machine import machine_fault
from pipeline.slides.drawn import START, is_ours
from pipeline.slides.provenance import SpoiltError
from pipeline.texts import read_bytes

log = logging.getLogger(__name__)

DIGITS = 16  # of the checksum


def write_contours(path: str | Path, polygons: Sequence[Polygon], properties: Mapping[str, object]) -> None:
    """Write `polygons` (holes allowed, level-0 pixels) as a FeatureCollection, atomically; the file's name is the slide's id.

    `properties` (settings, slide_fingerprint, …) become those of the collection; QuPath passes over them.
    """
    features = [
        {
            "type": "Feature",
            "geometry": mapping(polygon),
            "properties": {"objectType": "annotation", "classification": {"name": "Tissue", "color": [200, 0, 0]}},
        }
        for polygon in polygons
    ]
    facts = {"checksum": "0" * DIGITS, "made_by": "slide2surv", "slide_id": Path(path).stem, **properties}
    content = json.dumps({"type": "FeatureCollection", "properties": facts, "features": features}) + "\n"
    rest = content[len(START) + DIGITS :]
    write_text(path, START.decode() + _checksum(rest.encode()) + rest)


def _checksum(rest: bytes) -> str:
    """Of all that follows it in a file of ours."""
    return hashlib.sha256(rest).hexdigest()[:DIGITS]


def _is_whole(content: bytes) -> bool:
    end = len(START) + DIGITS
    return content.startswith(START) and content[len(START) : end] == _checksum(content[end:]).encode()


def read_contours(path: str | Path, ignore: Sequence[str] = (), slide_id: str | None = None) -> tuple[list[Polygon], dict[str, object]]:
    """The polygons of a GeoJSON file and the properties of its collection (empty when it was drawn by hand, in QuPath say).

    A bare feature, geometry or list of features is read too; points and lines are passed over, polygons that cross themselves are
    repaired. Annotations whose class matches one of the shell patterns `ignore` are taken out of all others.
    Raises `InputError` for anything else, and the `SpoiltError` among these for a file of ours that is not as it was written, or not of
    the slide `slide_id` where that is given.
    """
    remedy = "Delete the file to have the tissue found again, or export the annotations anew."
    text = read_bytes(path, "file of contours", remedy=remedy)
    try:
        if (ours := is_ours(text)) and not _is_whole(text):
            raise _spoilt(path)
        content = json.loads(text.decode("utf-8-sig"))
        if ours and slide_id not in (None, found := content["properties"]["slide_id"]):
            raise _spoilt(path, "holds the contours of another slide", found=found, expected=slide_id)
        features = content if isinstance(content, list) else content.get("features", [content])
        shapes = [(_class(feature), shape(feature.get("geometry", feature))) for feature in features]
    except SpoiltError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ShapelyError) as error:
        if fault := machine_fault(error, path):
            raise fault from error
        raise InputError(f"cannot be read as GeoJSON ({error})", file=path, expected="polygons", remedy=remedy) from error
    crossing = sum(not geometry.is_valid for _, geometry in shapes)
    if crossing:
        log.warning("%s: %d contours that cross themselves were repaired", path, crossing)
    ignored = [any(fnmatchcase(name, pattern) for pattern in ignore) for name, _ in shapes]
    polygons = [p for (_, geometry), out in zip(shapes, ignored, strict=True) if not out for p in polygonal(geometry)]
    if any(ignored):
        hole = unary_union([p for (_, geometry), out in zip(shapes, ignored, strict=True) if out for p in polygonal(geometry)])
        polygons = [part for polygon in polygons for part in polygonal(polygon.difference(hole))]
    return polygons, content["properties"] if ours else {}


def _spoilt(path: str | Path, problem: str = "is damaged, or was edited with its properties kept", **facts: object) -> SpoiltError:
    remedy = "Delete it and run again with `--forcerun tissue`. To keep what you edited, delete the `properties` of the collection."
    return SpoiltError(problem, file=path, **facts, remedy=remedy)  # type: ignore[arg-type]


def shape_digest(polygons: Sequence[Polygon]) -> str:
    """16 hex digits of the polygons' coordinates, in their order."""
    return hashlib.sha256(b"".join(map(to_wkb, polygons))).hexdigest()[:16]


def polygonal(geometry: BaseGeometry) -> list[Polygon]:
    """The polygons with an area that a geometry consists of, made valid."""
    if not geometry.is_valid:
        geometry = make_valid(geometry)
    parts = geometry.geoms if isinstance(geometry, BaseMultipartGeometry) else [geometry]
    return [p for part in parts for p in (polygonal(part) if isinstance(part, BaseMultipartGeometry) else [part]) if _has_area(p)]


def _has_area(geometry: BaseGeometry) -> bool:
    return isinstance(geometry, Polygon) and geometry.area > 0


def _class(feature: Mapping[str, object]) -> str:
    """The name of an annotation's class, empty without one. QuPath writes an object, older and other tools the bare name."""
    properties = feature.get("properties")
    found = properties.get("classification", "") if isinstance(properties, dict) else ""
    return str(found.get("name", "") if isinstance(found, dict) else found or "")
