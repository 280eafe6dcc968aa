from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from shapely.geometry import Point, Polygon, box, mapping
from shapely.ops import unary_union

from pipeline.errors import InputError
from pipeline.machine import MachineError
from pipeline.slides.contours import write_contours
from pipeline.slides.masks import MaskSettings, mask_file, outside_tissue

SIZE = (3072, 2560)  # width, height of the slide
TISSUE = box(512, 640, 2304, 1920).difference(box(1024, 1024, 1536, 1536))


def drawn(width: int = 192, height: int = 160, tissue: int = 255, background: int = 0) -> np.ndarray:
    """A mask [height, width] of TISSUE."""
    mask = np.full((height, width), background, np.uint8)
    across, down = SIZE[0] / width, SIZE[1] / height
    mask[round(640 / down) : round(1920 / down), round(512 / across) : round(2304 / across)] = tissue
    mask[round(1024 / down) : round(1536 / down), round(1024 / across) : round(1536 / across)] = background
    return mask


def taken(folder: Path, **settings: object) -> list[Polygon]:
    found = outside_tissue(folder, "s", SIZE, MaskSettings(**settings))
    assert found is not None
    return found


def overlap(polygons: list[Polygon]) -> float:
    union = unary_union(polygons)
    return union.intersection(TISSUE).area / union.union(TISSUE).area


def save_geojson(path: Path, polygons: list[Polygon], classes: list[str] | None = None) -> None:
    names = classes or [""] * len(polygons)
    features = [
        {"type": "Feature", "geometry": mapping(p), "properties": {"classification": {"name": n}} if n else {"tissue_id": i}}
        for i, (p, n) in enumerate(zip(polygons, names, strict=True))
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp"])
@pytest.mark.parametrize("width", [96, 192, 1536])
def test_an_image_mask_of_any_size_is_scaled_to_the_slide(tmp_path, suffix, width):
    Image.fromarray(drawn(width, width * 5 // 6)).save(tmp_path / f"s{suffix}")
    (found,) = taken(tmp_path)
    assert overlap([found]) > 0.99
    assert found.is_valid
    assert len(found.interiors) == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB", "RGBA", "LA"])
def test_masks_of_any_pixel_type_are_read(tmp_path, mode):
    image = Image.fromarray(drawn())
    if mode == "P":
        image = Image.fromarray(drawn(tissue=1))
        image.putpalette([0, 0, 0, 200, 30, 30])
    elif mode == "I;16":
        image = Image.fromarray(drawn().astype(np.uint16) * 200)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "s.png")
    assert overlap(taken(tmp_path)) > 0.99


def test_the_conventions_of_histoqc_and_grandqc_are_a_matter_of_settings(tmp_path):
    (tmp_path / "s.svs").mkdir()
    Image.fromarray(drawn()).save(tmp_path / "s.svs" / "s.svs_mask_use.png")
    assert overlap(taken(tmp_path, name="{slide_id}.svs/{slide_id}.svs_mask_use")) > 0.99
    Image.fromarray(drawn(tissue=0, background=1)).save(tmp_path / "s.svs_MASK.png")
    assert overlap(taken(tmp_path, name="{slide_id}.svs_MASK", values=(0,))) > 0.99
    artefacts = drawn(tissue=1, background=7)
    artefacts[100:110, 60:70] = 4
    Image.fromarray(artefacts).save(tmp_path / "s.svs_mask.png")
    (clean,) = taken(tmp_path, name="{slide_id}.svs_mask", values=(1,))
    assert len(clean.interiors) == 2
    (both,) = taken(tmp_path, name="{slide_id}.svs_mask", values=(1, 4))
    assert len(both.interiors) == 1


def test_contours_of_qupath_and_trident_are_read_joined_and_sorted(tmp_path):
    save_geojson(tmp_path / "s.geojson", [box(100, 900, 400, 1200), box(200, 200, 700, 700), box(600, 600, 900, 900)])
    found = taken(tmp_path)
    assert [p.bounds for p in found] == [(200, 200, 900, 900), (100, 900, 400, 1200)]
    assert sum(p.area for p in found) == 250_000 + 90_000 - 10_000 + 90_000


def test_our_own_contours_are_taken_back(tmp_path):
    write_contours(tmp_path / "s.geojson", [TISSUE], {"settings": "x"})
    (found,) = taken(tmp_path)
    assert found.equals(TISSUE)


def test_ignored_classes_are_taken_out(tmp_path):
    save_geojson(
        tmp_path / "s.geojson", [box(0, 0, 1000, 1000), box(400, 400, 600, 600), box(0, 0, 50, 50)], ["Tumor", "Ignore*", "Exclude"]
    )
    (found,) = taken(tmp_path)
    assert found.area == 1_000_000 - 40_000 - 2_500
    assert not found.contains(Point(500, 500))
    save_geojson(tmp_path / "s.geojson", [box(0, 0, 9, 9), box(40, 40, 60, 60)], ["Tumor", "fold"])
    (found,) = taken(tmp_path, ignore=("fold",))
    assert found.area == 81


def test_polygons_that_cross_themselves_are_repaired(tmp_path):
    save_geojson(tmp_path / "s.geojson", [Polygon([(0, 0), (100, 100), (100, 0), (0, 100)])])
    found = taken(tmp_path)
    assert all(p.is_valid for p in found)
    assert sum(p.area for p in found) == pytest.approx(5000)


def test_a_slight_overhang_is_cut_and_a_large_one_refused(tmp_path):
    save_geojson(tmp_path / "s.geojson", [box(-2, 100, 1000, 900)])
    assert taken(tmp_path)[0].bounds == (0, 100, 1000, 900)
    save_geojson(tmp_path / "s.geojson", [box(3000, 100, 6000, 900)])
    with pytest.raises(InputError) as error:
        taken(tmp_path)
    assert error.value.reason == (
        f"{tmp_path / 's.geojson'}, slide s: contours lie outside the slide; "
        "found 'x 3000 to 6000, y 100 to 900', expected x 0 to 3072, y 0 to 2560."
    )


@pytest.mark.parametrize("shape", [(160, 160), (192, 160), (80, 192)])
def test_a_mask_of_other_proportions_is_refused(tmp_path, shape):
    Image.fromarray(np.ones(shape, np.uint8)).save(tmp_path / "s.png")
    with pytest.raises(
        InputError, match=f"other proportions than the slide; found '{shape[1]} × {shape[0]} pixels', expected those of 3072 × 2560"
    ):
        taken(tmp_path)


def test_rounding_of_small_masks_is_no_other_proportion(tmp_path):
    Image.fromarray(np.ones((17, 20), np.uint8)).save(tmp_path / "s.png")
    assert taken(tmp_path)[0].area == pytest.approx(SIZE[0] * SIZE[1], rel=0.01)


def test_a_file_without_tissue_is_said(tmp_path):
    Image.fromarray(drawn(tissue=3, background=5)).save(tmp_path / "s.png")
    with pytest.raises(InputError, match="holds no tissue; found 'the values 3, 5'"):
        taken(tmp_path, values=(1,))
    (tmp_path / "s.png").unlink()
    save_geojson(tmp_path / "s.geojson", [box(0, 0, 9, 9)], ["Ignore*"])
    with pytest.raises(InputError, match="holds no tissue; found 'no area within the slide, or all of it of an ignored class'"):
        taken(tmp_path)


def test_unusable_files_are_named(tmp_path):
    (tmp_path / "s.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"s\.png, slide s: cannot be read as an image"):
        taken(tmp_path)
    coloured = np.dstack([drawn(), drawn() // 2, drawn() // 3])
    Image.fromarray(coloured).save(tmp_path / "s.png")
    assert overlap(taken(tmp_path)) > 0.99
    with pytest.raises(InputError, match="mask is coloured"):
        taken(tmp_path, values=(255,))


def test_a_large_mask_is_shrunk_before_it_is_traced(tmp_path):
    cv2.imwrite(str(tmp_path / "s.png"), cv2.resize(drawn(), (6144, 5120), interpolation=cv2.INTER_NEAREST))
    assert overlap(taken(tmp_path)) > 0.99


def test_which_file_is_taken(tmp_path):
    (tmp_path / "other.png").touch()
    assert mask_file("s", MaskSettings()) is None
    assert mask_file("s", MaskSettings(folder=tmp_path)) is None
    assert outside_tissue(tmp_path, "s", SIZE, MaskSettings()) is None
    Image.fromarray(drawn()).save(tmp_path / "s.other.png")
    assert mask_file("s", MaskSettings(folder=tmp_path)) is None
    Image.fromarray(drawn()).save(tmp_path / "s.png")
    assert mask_file("s", MaskSettings(folder=tmp_path)) == tmp_path / "s.png"
    save_geojson(tmp_path / "s.geojson", [TISSUE])
    with pytest.raises(InputError, match=r"slide s: has more than one mask; found 's.geojson, s.png'"):
        mask_file("s", MaskSettings(folder=tmp_path))
    assert mask_file("s", MaskSettings(folder=tmp_path, name="{slide_id}.png")) == tmp_path / "s.png"
    with pytest.raises(InputError, match=r"slide t: has no mask; expected t.geojson or"):
        mask_file("t", MaskSettings(folder=tmp_path, required=True))
    (tmp_path / "empty").mkdir()
    for folder in ("absent", "empty"):
        with pytest.raises(MachineError, match=f"{folder}: the folder of masks is absent or empty. Mount it again"):
            mask_file("s", MaskSettings(folder=tmp_path / folder))
