from __future__ import annotations

import hashlib
import json
import logging
import time

import numpy as np
import pytest
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box

from pipeline.errors import InputError
from pipeline.slides.contours import polygonal, read_contours, shape_digest, write_contours
from pipeline.slides.drawn import HEAD, drawn_by_hand
from pipeline.slides.provenance import SpoiltError

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
    assert {key: properties[key] for key in ("slide_id", "settings", "mpp")} == {"slide_id": "s", "settings": "x", "mpp": 0.5}
    assert shape_digest(read) == shape_digest(polygons) != shape_digest(polygons[:1])
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


PROPERTIES = {"settings": "0123", "slide_fingerprint": "4567", "mpp": 0.5, "tissue_source": "found", "flags": ""}


def test_contours_that_are_not_as_we_wrote_them_are_refused(tmp_path):
    path = tmp_path / "s.geojson"
    write_contours(path, [box(0, 0, 100, 80)], PROPERTIES)
    content = json.loads(path.read_text())
    ring = content["features"][0]["geometry"]["coordinates"][0]
    content["features"][0]["geometry"]["coordinates"][0] = [[x / 2, y / 2] for x, y in ring]
    for style in ({"sort_keys": True}, {"indent": 2}, {"separators": (",", ":")}, {}):  # of whatever tool writes it
        path.write_text(json.dumps(content, **style))
        assert not drawn_by_hand(tmp_path)
        with pytest.raises(SpoiltError) as error:
            read_contours(path)
    assert str(error.value) == (
        f"{path}: is damaged, or was edited with its properties kept. Delete it and run again with `--forcerun tissue`. "
        "To keep what you edited, delete the `properties` of the collection."
    )
    del content["properties"]
    path.write_text(json.dumps(content))
    assert read_contours(path)[0][0].area == 50 * 40
    assert read_contours(path)[1] == {}
    write_contours(path, [box(0, 0, 100, 80)], PROPERTIES)
    path.rename(tmp_path / "t.geojson")
    with pytest.raises(SpoiltError, match=r"t\.geojson: holds the contours of another slide; found 's', expected t\."):
        read_contours(tmp_path / "t.geojson", slide_id="t")


def test_no_bit_of_contours_flips_without_a_word(tmp_path):
    path, rng = tmp_path / "s.geojson", np.random.default_rng(8)
    write_contours(path, [box(0, 0, 100, 80).difference(box(10, 10, 20, 20)), box(200, 0, 260, 60)], PROPERTIES)
    whole = path.read_bytes()
    for bit in rng.choice(8 * len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert not drawn_by_hand(tmp_path)
        with pytest.raises(SpoiltError):
            read_contours(path)


def test_what_was_drawn_by_hand_is_told_by_its_head_and_digested_by_its_content(tmp_path):
    for number in range(300):
        write_contours(tmp_path / f"s{number}.geojson", [box(0, 0, 100, 80)], PROPERTIES)
    start = time.process_time()
    assert drawn_by_hand(tmp_path) == {}
    assert time.process_time() - start < 0.3
    text = json.dumps([feature(SQUARE)] * 100)
    assert len(text) > HEAD
    (tmp_path / "drawn.geojson").write_text(text)
    (tmp_path / ".s1.geojson.17-ab.tmp.geojson").write_text("{")  # being written
    (tmp_path / "s1.png").touch()
    assert drawn_by_hand(tmp_path) == {"drawn": hashlib.sha256(text.encode()).hexdigest()[:16]}
    (tmp_path / "drawn.geojson").write_text(text.replace("100", "101"))
    assert drawn_by_hand(tmp_path) == {"drawn": hashlib.sha256(text.replace("100", "101").encode()).hexdigest()[:16]}
    assert drawn_by_hand(tmp_path / "absent") == {}
