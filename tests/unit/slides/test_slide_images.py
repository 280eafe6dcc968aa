from __future__ import annotations

import gc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from synthetic_slides import write_svs

from pipeline.errors import InputError
from pipeline.slides import images, tiff
from pipeline.slides.opening import Slide, UnreadableRegionError
from pipeline.slides.resolution import resolve

SIZE = (613, 407)  # width and height: no multiple of anything


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (26, 39, 3), np.uint8)
    return np.ascontiguousarray(cv2.resize(coarse, (624, 416), interpolation=cv2.INTER_LINEAR)[: SIZE[1], : SIZE[0]])


def _write(path: Path, pixels: np.ndarray, **settings: object) -> Path:
    tifffile.imwrite(path, pixels, metadata=None, **settings)
    return path


def _whole(path: Path) -> np.ndarray:
    with Slide(path) as slide:
        return slide.read_rgb((0, 0), 0, slide.dimensions)


def _refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        Slide(path)
    return str(error.value).replace(f"{path}: ", "")


LAYOUTS = [
    {},
    {"bigtiff": True},
    {"byteorder": ">"},
    {"rowsperstrip": 7, "compression": "lzw"},
    {"rowsperstrip": 16, "compression": "zlib", "predictor": True},
    {"tile": (64, 128), "compression": "lzw", "predictor": True},
    {"tile": (64, 64), "compression": "zstd", "bigtiff": True},
    {"tile": (64, 64), "planarconfig": "separate"},
    {"rowsperstrip": 9, "planarconfig": "separate", "compression": "zlib"},
    {"tile": (64, 64), "compression": "jpeg2000"},
    {"tile": (128, 128), "compression": "webp", "compressionargs": {"lossless": True}},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())) or "plain")
def test_every_layout_of_a_tiff_gives_its_very_pixels(tmp_path, image, layout):
    pixels = np.moveaxis(image, 2, 0) if layout.get("planarconfig") == "separate" else image
    path = _write(tmp_path / "roi.tif", pixels, photometric="rgb", **layout)
    with Slide(path) as slide:
        assert (slide.format, slide.dimensions, slide.downsamples) == ("TIFF", SIZE, (1.0,))
        assert (slide.read_rgb((0, 0), 0, SIZE) == image).all()
        assert (slide.read_rgb((201, 99), 0, (130, 70)) == image[99:169, 201:331]).all()
        corner = slide.read_rgb((600, 400), 0, (64, 64))
        assert (corner[:7, :13] == image[400:, 600:]).all()
        assert corner[7:].min() == corner[:, 13:].min() == 255
        assert (slide.read_rgb((5000, -900), 0, (8, 8)) == 255).all()


@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"rowsperstrip": 16}])
def test_jpeg_in_tiff_keeps_its_colours(tmp_path, image, layout):
    path = _write(tmp_path / "roi.tif", image, photometric="rgb", compression="jpeg", compressionargs={"level": 95}, **layout)
    assert np.abs(_whole(path).astype(int) - image).mean() < 4


@pytest.mark.parametrize("tiled", [True, False])
def test_grey_palette_and_inverted_pixels_become_the_colours_that_they_mean(tmp_path, image, tiled):
    layout = {"tile": (64, 64)} if tiled else {"rowsperstrip": 50, "compression": "lzw"}
    grey = image[..., 0]
    colormap = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
    assert (_whole(_write(tmp_path / "g.tif", grey, photometric="minisblack", **layout)) == grey[..., None]).all()
    assert (_whole(_write(tmp_path / "i.tif", grey, photometric="miniswhite", **layout)) == 255 - grey[..., None]).all()
    palette = _whole(_write(tmp_path / "p.tif", grey, photometric="palette", colormap=colormap, **layout))
    assert (palette == (colormap >> 8).T[grey]).all()


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
def test_transparent_pixels_of_a_tiff_are_glass(tmp_path, image, extra):
    alpha = np.zeros(SIZE[::-1], np.uint8)
    alpha[:200], alpha[200:300] = 255, 51
    colour = image if extra == "unassalpha" else (image.astype(int) * alpha[..., None] // 255).astype(np.uint8)
    path = _write(tmp_path / "a.tif", np.dstack([colour, alpha]), photometric="rgb", tile=(64, 64), extrasamples=[extra])
    found = _whole(path)
    assert (found[:200] == image[:200]).all()
    assert np.abs(found[200:300] - (image[200:300] * 0.2 + 204)).max() <= 1.5
    assert (found[300:] == 255).all()


def test_ink_of_cmyk_is_taken_from_white(tmp_path, image):
    black = np.full((*SIZE[::-1], 1), 51, np.uint8)
    path = _write(tmp_path / "c.tif", np.dstack([255 - image, black]), photometric="separated", tile=(64, 64))
    assert np.abs(_whole(path) - image * 0.8).max() <= 1


def test_sixteen_bits_are_scaled_by_the_declared_range(tmp_path, image, caplog):
    twelve = (image.astype(np.uint32) * 4095 // 255).astype(np.uint16)
    declared = _write(tmp_path / "d.tif", twelve, photometric="rgb", tile=(64, 64), extratags=[(281, "H", 3, (4095,) * 3, True)])
    assert np.abs(_whole(declared).astype(int) - image).max() <= 1
    offset = _write(
        tmp_path / "o.tif", twelve + 100, photometric="rgb", extratags=[(280, "H", 3, (100,) * 3, True), (281, "H", 3, (4195,) * 3, True)]
    )
    assert np.abs(_whole(offset).astype(int) - image).max() <= 1
    ome = tmp_path / "o.ome.tif"
    tifffile.imwrite(ome, twelve, photometric="rgb", metadata={"axes": "YXS", "SignificantBits": 12})
    assert np.abs(_whole(ome).astype(int) - image).max() <= 1
    assert not caplog.messages
    assert (_whole(_write(tmp_path / "f.tif", image.astype(np.uint16) * 257, photometric="rgb")) == image).all()
    assert caplog.messages == ["f.tif: 16 bits without a declared range are taken for 0–65535"]


def test_a_pyramid_in_subifds_and_its_resolution_are_found(tmp_path, square_picture):
    path = tmp_path / "pyramid.ome.tif"
    settings = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    metadata = {"axes": "YXS", "PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 500.0, "PhysicalSizeYUnit": "nm"}
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        out.write(square_picture, subifds=2, metadata=metadata, **settings)
        for factor in (4, 16):
            small = cv2.resize(square_picture, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
            out.write(small, subfiletype=1, **settings)
    with Slide(path) as slide:
        assert (slide.format, slide.downsamples) == ("OME-TIFF", (1.0, 4.0, 16.0))
        found = resolve(slide.properties, "s")
        assert (found.mpp, found.source) == (0.5, "vendor")
        at_16 = slide.read_rgb((512, 512), 2, (64, 32))
        expected = square_picture[512:1024, 512:1536].reshape(32, 16, 64, 16, 3).mean((1, 3))
        assert np.abs(at_16 - expected).max() <= 0.5


def test_only_reductions_of_the_largest_page_are_levels(tmp_path, square_picture):
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as out:
        for pixels in (
            cv2.resize(square_picture, (193, 161)),  # a thumbnail before the slide itself; both sides rounded up
            square_picture,
            cv2.resize(square_picture, (400, 150)),  # a label of another shape
            cv2.resize(square_picture, (768, 640))[..., 0],  # a mask
            cv2.resize(square_picture, (768, 640)),
        ):
            out.write(pixels, tile=(256, 256), photometric="rgb" if pixels.ndim == 3 else "minisblack", metadata=None)
    with Slide(path) as slide:
        assert slide.dimensions == (3072, 2560)
        assert slide.downsamples == (1.0, 4.0, pytest.approx(15.9, abs=0.02))
        assert (slide.read_rgb((0, 0), 0, slide.dimensions) == square_picture).all()


def test_the_first_of_a_focus_stack_is_used_with_a_warning(tmp_path, image, caplog):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.stack([image, 255 - image, image]), photometric="rgb", metadata={"axes": "ZYXS"})
    assert (_whole(path) == image).all()
    assert caplog.messages == ["stack.tif: has 3 pages of one size (a focus stack?); the first is used"]


VIPS = "Convert it to a tiled RGB TIFF of 8 bits: `vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg --bigtiff`."


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda i: (i.astype(np.float32), {"photometric": "rgb"}), f"has samples of type float32, which is not read as a slide. {VIPS}"),
        (lambda i: (i.astype(np.int16), {"photometric": "rgb"}), f"has samples of type int16, which is not read as a slide. {VIPS}"),
        (lambda i: (i, {"photometric": "cielab"}), f"has the colour space CIELAB, which is not read as a slide. {VIPS}"),
        (
            lambda i: (np.dstack([i, i]), {"photometric": "minisblack", "planarconfig": "contig"}),
            f"has 6 samples a pixel with the colour space MINISBLACK, which is not read as a slide. {VIPS}",
        ),
        (
            lambda i: (np.moveaxis(i, 2, 0), {"photometric": "minisblack", "ome": True, "metadata": {"axes": "CYX"}}),
            "has 3 channels in separate pages (fluorescence?), which is not read as a slide. Export the slide as RGB, from QuPath say.",
        ),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path, image, make, message):
    pixels, layout = make(image)
    tifffile.imwrite(tmp_path / "s.tif", pixels, **{"metadata": None, **layout})
    assert _refusal(tmp_path / "s.tif") == message


def test_the_index_of_an_olympus_slide_is_no_slide(tmp_path, image):
    assert _refusal(_write(tmp_path / "s.vsi", image)) == (
        "is an Olympus VSI file, whose pixels lie in ETS files beside it. Convert it to a tiled TIFF, with `bfconvert` of Bio-Formats say."
    )


def test_a_compressed_strip_as_large_as_a_slide_is_refused_and_an_uncompressed_one_mapped(tmp_path, image, monkeypatch):
    monkeypatch.setattr(tiff, "MAX_SEGMENT", 50_000)
    assert (_whole(_write(tmp_path / "u.tif", image, rowsperstrip=SIZE[1], photometric="rgb")) == image).all()
    packed = _write(tmp_path / "c.tif", image, rowsperstrip=SIZE[1], photometric="rgb", compression="lzw")
    assert _refusal(packed) == (
        f"is compressed in pieces too large to decode one by one; found '613 × 407 pixels', expected at most 50000 pixels. {VIPS}"
    )


def test_only_the_tiles_that_a_read_touches_are_decoded(tmp_path, image):
    path = _write(tmp_path / "s.tif", image, tile=(64, 64), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path) as file:
        broken = file.pages[0].dataoffsets[12]  # column 2, row 1
    with open(path, "r+b") as handle:
        handle.seek(broken)
        handle.write(b"\0" * 8)
    with Slide(path) as slide:
        assert (slide.read_rgb((192, 64), 0, (64, 64)) == image[64:128, 192:256]).all()
        for _ in range(2):
            with pytest.raises(UnreadableRegionError):
                slide.read_rgb((191, 64), 0, (64, 64))
        assert (slide.read_rgb((192, 64), 0, (64, 64)) == image[64:128, 192:256]).all()


def test_tiles_beyond_the_end_of_the_file_say_so_and_the_others_are_read(tmp_path, image):
    path = _write(tmp_path / "s.tif", image, tile=(64, 64), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path) as file:
        end = file.pages[0].dataoffsets[-1] + file.pages[0].databytecounts[-1]
    path.write_bytes(path.read_bytes()[: end - 5])
    with Slide(path) as slide:
        assert (slide.read_rgb((0, 0), 0, (64, 64)) == image[:64, :64]).all()
        with pytest.raises(UnreadableRegionError, match=f"the file looks truncated: pixels should reach byte {end}, the file ends before"):
            slide.read_rgb((600, 400), 0, (8, 4))


def test_a_tile_that_was_never_written_is_glass(tmp_path, image):
    path = tmp_path / "sparse.tif"
    grey = [zlib.compress(bytes([value]) * 64 * 64 * 3) for value in (0, 128)]
    tiles = iter([(grey[0], len(grey[0])), (b"", 0), (grey[1], len(grey[1])), (b"", 0)])
    layout = {"shape": (128, 128, 3), "dtype": np.uint8, "tile": (64, 64), "compression": "zlib", "photometric": "rgb"}
    tifffile.imwrite(path, tiles, metadata=None, **layout)
    found = _whole(path)
    assert [int(found[y, x, 0]) for y, x in ((10, 10), (10, 100), (100, 10), (100, 100))] == [0, 255, 128, 255]


def test_a_plain_jpeg_tiff_gives_the_pixels_of_a_scan(tmp_path, square_picture, square_slide):
    plain = tmp_path / "plain.tif"
    settings = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 90}}
    tifffile.imwrite(plain, square_picture, metadata=None, **settings)
    with Slide(plain) as ours, Slide(square_slide) as scan:
        region = ((700, 900), 0, (600, 500))
        assert np.abs(ours.read_rgb(*region).astype(int) - scan.read_rgb(*region)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_pictures_give_their_very_pixels(tmp_path, image, kind):
    path = tmp_path / f"roi.{kind.lower()}"
    Image.fromarray(image).save(path)
    with Slide(path) as slide:
        assert (slide.format, slide.dimensions) == (kind, SIZE)
        assert (slide.read_rgb((-3, 5), 0, (20, 10))[:, 3:] == image[5:15, :17]).all()
        with pytest.raises(InputError, match="no resolution in the file"):
            resolve(slide.properties, "s")


def test_alpha_palette_and_sixteen_bits_of_png(tmp_path, image):
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(grey).save(tmp_path / "16.png")
    assert np.abs(_whole(tmp_path / "16.png")[..., 0].astype(int) - grey // 257).max() <= 1
    alpha = np.zeros(SIZE[::-1], np.uint8)
    alpha[:200] = 255
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "a.png")
    found = _whole(tmp_path / "a.png")
    assert (found[:200] == image[:200]).all()
    assert (found[200:] == 255).all()
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "p.png", transparency=2)
    assert _whole(tmp_path / "p.png").tolist() == [[[10, 20, 30], [40, 50, 60], [255, 255, 255]]]
    Image.fromarray(image[..., 0] > 127).save(tmp_path / "1.png")
    assert (_whole(tmp_path / "1.png") == 255 * (image[..., :1] > 127)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_as_a_viewer_turns_it(tmp_path, image, orientation, caplog):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "roi.jpg"
    Image.fromarray(image).save(path, quality=95, exif=exif)
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    assert (_whole(path) == expected).all()
    text = f"roi.jpg: turned as its EXIF orientation ({orientation}) says; coordinates are those of the turned picture"
    assert caplog.messages == ([] if orientation == 1 else [text])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_refused(tmp_path, image, kind):
    path = tmp_path / "roi"
    Image.fromarray(image).save(path, format=kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = _refusal(path)
    assert message.startswith(f"cannot be decoded as {kind} (image file is truncated")
    assert message.endswith(". Copy the file again from its source and compare size and checksum.")


def test_a_picture_too_large_to_decode_is_refused_with_the_command_that_helps(tmp_path, image, monkeypatch):
    Image.fromarray(image).save(tmp_path / "roi.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 200_000)
    assert _refusal(tmp_path / "roi.png") == (
        "PNG has to be decoded whole and is too large for that; found '613 × 407 pixels', expected at most 200000 pixels. "
        "Convert it: `vips tiffsave roi.png roi.tif --tile --pyramid --compression jpeg --bigtiff`."
    )


def test_the_handles_of_a_picture_share_its_pixels_until_the_last_is_closed(tmp_path, image):
    path = tmp_path / "roi.png"
    Image.fromarray(image).save(path)
    gc.collect()
    before = len(images._shared)
    with Slide(path), Slide(path):
        assert len(images._shared) == before + 1
    gc.collect()
    assert len(images._shared) == before
    Image.fromarray(255 - image).save(path)
    assert (_whole(path) == 255 - image).all()


def test_a_scan_with_tiles_stays_with_openslide(tmp_path, square_picture):
    with Slide(write_svs(tmp_path / "scan.tif", square_picture)) as slide:
        assert slide.format == "aperio"
