"""The one owner of GeoJSON: tissue contours in level-0 pixels, as QuPath draws and reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from shapely.errors import ShapelyError
from shapely.geometry import MultiPolygon, Polygon, mapping, shape

from pipeline.errors import InputError
from pipeline.files import write_text


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


def read_contours(path: str | Path) -> tuple[list[Polygon], dict[str, object]]:
    """The polygons of a GeoJSON file and the properties of its collection (empty when it was drawn by hand, in QuPath say).

    A bare feature or list of features is read too; points and lines are passed over. Raises `InputError` for anything else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        features = content if isinstance(content, list) else content.get("features", [content])
        shapes = [shape(feature["geometry"]) for feature in features]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ShapelyError) as error:
        remedy = "Delete the file to have the tissue found again, or export the annotations anew."
        raise InputError(f"cannot be read as GeoJSON ({error})", file=path, expected="polygons", remedy=remedy) from error
    polygons: list[Polygon] = []
    for geometry in shapes:
        polygons += geometry.geoms if isinstance(geometry, MultiPolygon) else [geometry] if isinstance(geometry, Polygon) else []
    properties = content.get("properties", {}) if isinstance(content, dict) else {}
    return [p for p in polygons if not p.is_empty], dict(properties) if isinstance(properties, dict) else {}
