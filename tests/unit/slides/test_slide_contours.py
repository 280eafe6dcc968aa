from __future__ import annotations

import json
import logging

import pytest
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box

from pipeline.errors import InputError
from pipeline.slides.contours import polygonal, read_contours, write_contours

SQUARE = [[[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]]


def feature(coordinates: list, classification: object = None) -> dict[str, object]:
    properties = {} if classification is None else {"objectType": "annotation", "classification": classification}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": coordinates}, "properties": properties}


def test_contours_survive_a_round_trip_and_suit_qupath(tmp_path):
    polygons = [box(0, 0, 100, 80).difference(box(10, 10, 20, 20)), box(200, 0, 260, 60)]
    write_contours(tmp_path / "s.geojson", polygons, {"settings": "x", "mpp": 0.5})
    content = json.loads((tmp_path / "s.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    for written in content["features"]:
        assert written["type"] == "Feature"
        assert written["geometry"]["type"] == "Polygon"
        assert written["properties"]["objectType"] == "annotation"
        assert written["properties"]["classification"] == {"name": "Tissue", "color": [200, 0, 0]}
        assert all(ring[0] == ring[-1] for ring in written["geometry"]["coordinates"])
    assert len(content["features"][0]["geometry"]["coordinates"]) == 2
    read, properties = read_contours(tmp_path / "s.geojson")
    assert properties == {"settings": "x", "mpp": 0.5}
    assert all(a.equals(b) for a, b in zip(read, polygons, strict=True))


def test_annotations_drawn_by_hand_are_read_whatever_their_wrapping(tmp_path):
    square = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}
    both = {"type": "MultiPolygon", "coordinates": [square["coordinates"], [[[20, 20], [29, 20], [29, 29], [20, 20]]]]}
    point = {"type": "Point", "coordinates": [1, 1]}
    features = [{"type": "Feature", "geometry": g, "properties": {}} for g in (both, point)]
    path = tmp_path / "hand.geojson"
    for content in (features, {"type": "FeatureCollection", "features": features}, features[0], both):
        path.write_text(json.dumps(content))
        assert len(read_contours(path)[0]) == 2
    for text in ("{", "[1]", '{"features": [{"geometry": {"type": "Blob"}}]}', '{"type": "Feature", "geometry": null}'):
        path.write_text(text)
        with pytest.raises(InputError, match="cannot be read as GeoJSON"):
            read_contours(path)


def test_ignored_classes_are_cut_out_of_the_others(tmp_path):
    hole, outside = [[[20, 20], [60, 20], [60, 60], [20, 60], [20, 20]]], [[[300, 0], [310, 0], [310, 10], [300, 0]]]
    path = tmp_path / "s.geojson"
    for name in ({"name": "Ignore*", "color": [180, 180, 180]}, {"name": "Ignore"}, "Ignore-fold"):
        content = [feature(SQUARE, {"name": "Tumor"}), feature(hole, name), feature(outside, name), feature(outside)]
        path.write_text(json.dumps(content))
        found, _ = read_contours(path, ignore=["Ignore*"])
        assert [p.area for p in found] == [100 * 100 - 40 * 40]
        assert len(found[0].interiors) == 1
        assert len(read_contours(path)[0]) == 4


def test_contours_that_cross_themselves_are_repaired_and_said(tmp_path, caplog):
    bowtie = [[[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]]
    path = tmp_path / "s.geojson"
    path.write_text(json.dumps([feature(bowtie), feature(SQUARE)]))
    with caplog.at_level(logging.WARNING):
        found, _ = read_contours(path)
    assert all(p.is_valid for p in found)
    assert sum(p.area for p in found) == pytest.approx(5000 + 10000)
    assert "1 contours that cross themselves were repaired" in caplog.text


def test_only_what_has_an_area_is_polygonal():
    mixed = GeometryCollection(
        [box(0, 0, 1, 1), LineString([(0, 0), (1, 1)]), Point(0, 0), MultiPolygon([box(2, 2, 3, 3), box(4, 4, 5, 5)])]
    )
    assert [p.area for p in polygonal(mixed)] == [1, 1, 1]
    assert polygonal(Polygon()) == []
