"""The one owner of GeoJSON: tissue contours in level-0 pixels, as QuPath draws and reads them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from shapely import make_valid
from shapely.errors import ShapelyError
from shapely.geometry import Polygon, mapping, shape
from shapely.geometry.base import BaseGeometry, BaseMultipartGeometry
from shapely.ops import unary_union

from pipeline.errors import InputError
from pipeline.files import write_text

log = logging.getLogger(__name__)


def write_contours(path: str | Path, polygons: Sequence[Polygon], properties: Mapping[str, object]) -> None:
    """Write `polygons` (holes allowed, level-0 pixels) as a FeatureCollection, atomically.

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
    write_text(path, json.dumps({"type": "FeatureCollection", "properties": dict(properties), "features": features}) + "\n")


def read_contours(path: str | Path, ignore: Sequence[str] = ()) -> tuple[list[Polygon], dict[str, object]]:
    """The polygons of a GeoJSON file and the properties of its collection (empty when it was drawn by hand, in QuPath say).

    A bare feature, geometry or list of features is read too; points and lines are passed over, polygons that cross themselves are
    repaired. Annotations whose class matches one of the shell patterns `ignore` are taken out of all others.
    Raises `InputError` for anything else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        features = content if isinstance(content, list) else content.get("features", [content])
        shapes = [(_class(feature), shape(feature.get("geometry", feature))) for feature in features]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ShapelyError) as error:
        remedy = "Delete the file to have the tissue found again, or export the annotations anew."
        raise InputError(f"cannot be read as GeoJSON ({error})", file=path, expected="polygons", remedy=remedy) from error
    crossing = sum(not geometry.is_valid for _, geometry in shapes)
    if crossing:
        log.warning("%s: %d contours that cross themselves were repaired", path, crossing)
    ignored = [any(fnmatchcase(name, pattern) for pattern in ignore) for name, _ in shapes]
    polygons = [p for (_, geometry), out in zip(shapes, ignored, strict=True) if not out for p in polygonal(geometry)]
    if any(ignored):
        hole = unary_union([p for (_, geometry), out in zip(shapes, ignored, strict=True) if out for p in polygonal(geometry)])
        polygons = [part for polygon in polygons for part in polygonal(polygon.difference(hole))]
    properties = content.get("properties", {}) if isinstance(content, dict) else {}
    return polygons, dict(properties) if isinstance(properties, dict) else {}


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
