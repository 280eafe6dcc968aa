"""Files that declare more than they hold, lead elsewhere or never end: each is refused for itself, within seconds and little memory."""

from __future__ import annotations

import gzip
import io
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tests.support.bounded import refusal

from pipeline.cohort.bags import import_bags, read_bags
from pipeline.config import read_yaml
from pipeline.errors import InputError
from pipeline.imaging.nifti import read_volume
from pipeline.omics.matrix import read_matrix
from pipeline.retrieve.contents import damage
from pipeline.slides.contours import read_contours
from pipeline.slides.features import map_features, read_coords, read_features
from pipeline.slides.foreign import read_foreign
from pipeline.slides.masks import MaskSettings, outside_tissue
from pipeline.slides.opening import Slide, UnreadableRegionError
from pipeline.slides.overview import read_overview
from pipeline.tables import read_numbers, read_table

ROWS, WIDTH = 10**7, 1024
BAGS = {"features": "features", "patient_id": "patient_id"}


def said(function: Callable[..., object], path: Path, *arguments: object, **bounds: float) -> str:
    return refusal(function, path, *arguments, **bounds).replace(f"{path}: ", "").replace(f"{path.parent}/", "")


def whole(path: Path) -> object:
    """Every pixel of a slide."""
    with Slide(path) as slide:
        try:
            return slide.read_rgb((0, 0), 0, (64, 64)), read_overview(slide, 8.0)
        except UnreadableRegionError as error:
            raise InputError(str(error)) from error


def imported(path: Path) -> None:
    import_bags(path, path.with_name("out.h5"))


# --- HDF5 ---------------------------------------------------------------------------------------------------------------------------


def declared(path: Path, name: str, **layout: object) -> Path:
    """1.4 kB that say they are [10⁷, 1024]."""
    with h5py.File(path, "w") as file:
        values = file.create_dataset(name, (ROWS, WIDTH), "f4", **layout)
        if layout:
            values[0, :64] = 1.0
        file["patient_id" if name == "features" else "feature"] = np.array(["a"], dtype=h5py.string_dtype())
        if name == "values":
            file["patient_id"] = np.array(["a"], dtype=h5py.string_dtype())
    return path


PACKED = {"chunks": (64, 64), "compression": "gzip"}
MANY = "dataset 'features' declares more than the file holds; found '[10000000, 1024] of float32, 41.0 GB', expected at most 67.1 MB for "


@pytest.mark.parametrize("read", [read_features, map_features, read_foreign, read_bags, imported])
def test_a_packed_dataset_is_judged_by_what_it_declares(tmp_path, read):
    path = declared(tmp_path / "s.h5", "features", **PACKED)
    assert path.stat().st_size < 20_000
    assert said(read, path).startswith(MANY)


@pytest.mark.parametrize(("read", "name"), [(read_features, "features"), (read_bags, "features"), (read_matrix, "values")])
def test_a_dataset_that_was_never_written_is_no_zeros(tmp_path, read, name):
    path = declared(tmp_path / "s.h5", name)
    assert said(read, path).startswith(f"dataset '{name}' was never written; found '[10000000, 1024] of float32, no byte of it stored'")


def test_coordinates_and_omics_are_judged_too(tmp_path):
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("coords", (10**9, 2), "i4", chunks=(64, 2), compression="gzip")[0] = 1
    assert said(read_coords, tmp_path / "c.h5").startswith(
        "dataset 'coords' declares more than the file holds; found '[1000000000, 2] of int32, 8.0 GB', expected at most 67.1 MB for "
    )
    path = declared(tmp_path / "o.h5", "values", **PACKED)
    assert said(read_matrix, path).startswith("dataset 'values' declares more than the file holds;")


def test_a_million_names_of_one_long_text_are_not_written_out(tmp_path):
    """Each entry of a text dataset is a reference of 16 bytes; here all lead to the same 64 kB."""
    with h5py.File(tmp_path / "o.h5", "w") as file:
        file["values"] = np.zeros((1, 1), np.float32)
        file["feature"] = np.array(["a"], dtype=h5py.string_dtype())
        file.create_dataset("patient_id", data=["x" * 60_000] + ["y"] * 19_999, dtype=h5py.string_dtype())
        offset = file["patient_id"].id.get_offset()
    raw = bytearray((tmp_path / "o.h5").read_bytes())
    raw[offset : offset + 16 * 20_000] = raw[offset : offset + 16] * 20_000
    (tmp_path / "o.h5").write_bytes(raw)
    assert "'/patient_id' declares more than the file holds; found '20000 texts, " in said(read_matrix, tmp_path / "o.h5")


@pytest.mark.parametrize("how", ["external link", "external storage", "virtual", "soft link"])
@pytest.mark.parametrize("read", [read_features, map_features, read_foreign, imported])
def test_a_dataset_elsewhere_never_reaches_results(tmp_path, how, read):
    """The other file holds what is not the slide's; its bytes could be read back out of the features."""
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(4096, dtype=np.float32).tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.ones((4, 8), np.float32)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        if how == "external link":
            file["features"] = h5py.ExternalLink("other.h5", "data")
        elif how == "external storage":
            file.create_dataset("features", (4, 8), "f4", external=[(str(secret), 0, 128)])
        elif how == "virtual":
            layout = h5py.VirtualLayout((4, 8), "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "data", (4, 8))
            file.create_virtual_dataset("features", layout)
        else:
            file["away"] = h5py.ExternalLink("other.h5", "/")
            file["features"] = h5py.SoftLink("/away/data")
        file["patient_id"] = np.array(["a"] * 4, dtype=h5py.string_dtype())
    found = {
        "external link": "a link to other.h5",
        "external storage": f"bytes of {secret}".replace(f"{tmp_path}/", ""),
        "virtual": "a virtual dataset",
        "soft link": "a link to /away/data",
    }[how]
    if read is imported and how == "soft link":
        return  # the link on the way is refused first, since all datasets are read
    message = said(read, tmp_path / "s.h5")
    assert f"dataset 'features' does not lie in the file itself; found '{found}', expected a dataset with its data in the file." in message


def test_another_name_within_the_file_is_followed(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["data"] = np.ones((4, 8), np.float32)
        file["features"] = h5py.SoftLink("/data")
    assert read_features(tmp_path / "s.h5").features.shape == (4, 8)


# --- .npz and .pt -------------------------------------------------------------------------------------------------------------------


def test_packed_zeros_and_a_header_that_lies_are_no_bags(tmp_path):
    with zipfile.ZipFile(tmp_path / "zeros.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", npy((100_000, 200)) + bytes(80_000_000))
    assert said(imported, tmp_path / "zeros.npz").startswith("the archive declares more than the file holds; found '1 arrays, 80.0 MB'")
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.writestr("features.npy", npy((ROWS, WIDTH)) + bytes(64))
    expected = "array 'features' declares more than the file holds; found '[10000000, 1024] of float32 in 192 bytes'."
    assert said(imported, tmp_path / "lies.npz") == expected


def npy(shape: tuple[int, ...]) -> bytes:
    """The header of an array in a .npz."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize("archive", [True, False])
def test_a_view_of_one_row_is_not_ten_million(tmp_path, archive):
    path = tmp_path / "s.pt"
    torch.save(torch.zeros(1, WIDTH, dtype=torch.bfloat16).expand(ROWS, WIDTH), path, _use_new_zipfile_serialization=archive)
    assert said(read_foreign, path).startswith(
        "a tensor declares more than the file holds; found '[10000000, 1024], 20.5 GB', expected at most 67.1 MB for 2,048 stored bytes."
    )


def test_numbers_behind_the_end_of_their_part_are_not_read(tmp_path):
    """PyTorch believes the pickle and reads on in its own memory."""
    torch.save(torch.zeros(100, WIDTH), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "s.pt", "w") as short:
        for member in whole.infolist():
            content = whole.read(member)
            short.writestr(member, content[:64] if member.filename.endswith("/data/0") else content)
    expected = "a tensor declares more than the file holds; found '102,400 numbers, 409,600 bytes in a part of 64'."
    assert said(read_foreign, tmp_path / "s.pt").startswith(expected)


# --- slides and masks ---------------------------------------------------------------------------------------------------------------


def directories(path: Path, count: int, last: int = 0) -> Path:
    """A TIFF of `count` directories of one tag each, the last of which leads to the directory `last` (0: nowhere)."""
    at = [8 + 18 * number for number in range(count)]
    pointers = [*at[1:], at[last - 1] if last else 0]
    entry = struct.pack("<HHII", 256, 4, 1, 64)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + b"".join(struct.pack("<H", 1) + entry + struct.pack("<I", p) for p in pointers))
    return path


@pytest.mark.parametrize(("count", "last"), [(1, 1), (3, 2), (300, 150)])
def test_directories_in_a_circle_end(tmp_path, count, last):
    path = directories(tmp_path / "s.tif", count, last)
    expected = f"cannot be opened as a slide (the directories of the TIFF); found 'directory {count} leads back to directory {last}', "
    assert said(Slide, path).startswith(expected + "expected each directory once. Copy the file again")


def test_two_hundred_thousand_directories_are_not_followed(tmp_path):
    path = directories(tmp_path / "s.tif", 200_000)
    expected = "cannot be opened as a slide (the directories of the TIFF); found 'more than 1,000', expected at most 1,000. Copy"
    assert said(Slide, path, seconds=2).startswith(expected)


def patched(path: Path, **tags: int) -> Path:
    """The file with other values in its first directory."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name, value in tags.items():
            tiff.pages[0].tags[name].overwrite(value)
    return path


def test_a_tile_of_four_thousand_million_pixels_is_not_decoded(tmp_path):
    """OpenSlide takes the memory for it, or ends the process."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    size = {"ImageWidth": 65_500, "ImageLength": 65_500, "TileWidth": 65_500, "TileLength": 65_500}
    for name, description in (("plain.tif", "x"), ("scan.tif", "Aperio Image Library v1\n64x64 |AppMag = 20|MPP = 0.5")):
        tifffile.imwrite(
            tmp_path / name, pixels, tile=(64, 64), photometric="rgb", compression="jpeg", description=description, metadata=None
        )
        message = said(whole, patched(tmp_path / name, **size))
        assert "65500" in message
        assert "expected at most" in message


def test_a_stream_larger_than_its_tile_is_not_decoded(tmp_path):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), tile=(64, 64), photometric="rgb", compression="jpeg", metadata=None)
    raw = path.read_bytes()
    at = raw.index(b"\xff\xc0")
    path.write_bytes(raw[: at + 5] + struct.pack(">2H", 65_500, 65_500) + raw[at + 9 :])
    assert "the stream has 65500 x 65500 pixels in place of 64 x 64" in said(whole, path)


def png(path: Path, side: int) -> Path:
    """A few bytes that say they are a picture of `side` by `side`."""
    Image.new("RGB", (8, 8)).save(path, "png")
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">2I", side, side)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)
    return path


def test_a_picture_is_judged_by_its_bytes(tmp_path):
    path = png(tmp_path / "s.png", 12_000)
    stored = path.stat().st_size
    expected = (
        f"PNG declares more pixels than the file holds; found '12000 × 12000 pixels in {stored} bytes', expected at most 16777216 pixels."
    )
    assert said(Slide, path).startswith(expected)
    expected = (
        f"s.png, slide s: mask declares more pixels than the file holds; found '12000 × 12000 pixels in {stored} bytes', expected at most"
    )
    assert said(mask, path).startswith(expected)


def mask(path: Path) -> object:
    return outside_tissue(path.parent, "s", (64, 64), MaskSettings())


def test_a_mask_is_decoded_by_its_content_alone(tmp_path, monkeypatch):
    """Pillow hands what looks like PostScript to Ghostscript, whatever the file is called."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    (tmp_path / "s.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    message = said(mask, tmp_path / "s.png")
    assert message.startswith(
        "s.png, slide s: cannot be read as an image; found \"text, beginning with '%!PS-Adobe-3.0 EPSF-3.0'\", expected PNG"
    )
    assert not (tmp_path / "was-run").exists()


def test_a_mask_whose_directories_lead_in_a_circle_is_refused(tmp_path):
    assert "directory 3 leads back to directory 1" in said(mask, directories(tmp_path / "s.tif", 3, 1))


# --- tables -------------------------------------------------------------------------------------------------------------------------


def test_packed_nothing_is_no_table(tmp_path):
    """Members of gzip may be repeated: 600 kB of one endless line."""
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"patient_id\ta\n") + gzip.compress(bytes(b"0" * 2**20)) * 600)
    expected = "t.tsv.gz, row 2: line is too long; expected at most 67,108,864 characters."
    assert said(read_table, tmp_path / "t.tsv.gz", memory=2**29) == expected
    assert damage(tmp_path / "t.tsv.gz", "t.tsv.gz") == "the gzip file unpacks to more than 200 times its size"


def test_packed_rows_without_end_are_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tables.SMALL_TABLE", 2**18)
    monkeypatch.setattr("pipeline.tables.MOST_CELLS", 10_000)
    rows = gzip.compress(b"P\t0\n" * 2**15)
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"patient_id\ta\n") + rows * 3)
    assert said(read_table, tmp_path / "t.tsv.gz") == "t.tsv.gz, row 1002: has too many cells; expected at most 1,000 rows of 2 columns."
    message = said(read_numbers, tmp_path / "t.tsv.gz", list)
    assert message.startswith("t.tsv.gz, row 65534: unpacks to more than a table can have; expected at most 262,144 characters in ")


def test_a_cell_of_forty_megabytes_and_a_header_of_a_million_columns_are_named(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("patient_id\ta\nP1\t" + "x" * 40_000_000 + "\n")
    expected = "t.tsv, row 2: a cell has too many characters; expected at most 131,072. A quote that is never closed"
    assert said(read_table, path, memory=2**29).startswith(expected)
    path.write_text("patient_id\t" + "\t".join(map(str, range(1_000_000))) + "\n")
    expected = "t.tsv, row 1: has too many columns; found '1,000,001', expected at most 500,000. Is the table turned round?"
    assert said(read_table, path, memory=2**29) == expected


def test_the_last_of_many_columns_that_appears_twice_is_found_at_once(tmp_path):
    (tmp_path / "t.tsv").write_text("\t".join([*map(str, range(100_000)), "99999"]) + "\n")
    assert said(read_table, tmp_path / "t.tsv").startswith("t.tsv, row 1, column '99999': column appears twice;")


# --- configuration ------------------------------------------------------------------------------------------------------------------


def test_aliases_of_aliases_are_not_written_out(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    expected = "c.yaml, row 6: not valid YAML (its aliases stand for more than 100,000 values)."
    assert said(read_yaml, tmp_path / "c.yaml") == expected


@pytest.mark.parametrize("text", ["a: " + "[" * 50_000, "- " * 50_000 + "x", "{a: " * 50_000])
def test_levels_without_end_do_not_overflow_the_stack(tmp_path, text):
    """The parser in C follows them by recursion, and ends the process."""
    (tmp_path / "c.yaml").write_text(text)
    assert said(read_yaml, tmp_path / "c.yaml") == "c.yaml, row 1: not valid YAML (more than 200 levels)."


def test_an_alias_of_itself_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("a: &a\n  b: *a\n")
    assert said(read_yaml, tmp_path / "c.yaml") == "c.yaml, row 1: not valid YAML (an alias stands for what it is a part of)."


# --- volumes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_that_declares_more_than_it_has_is_cut_off(tmp_path, suffix):
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
    image.header.set_data_shape((700, 700, 700))
    raw = image.header.binaryblock + bytes(4 + 32)
    (tmp_path / f"v{suffix}").write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    expected = "is cut off; found '384 bytes', expected 1372000000 bytes by its header."
    assert said(read_volume, tmp_path / f"v{suffix}").startswith(expected)
    image.header.set_data_shape((30_000, 30_000, 30_000))
    (tmp_path / "w.nii").write_bytes(image.header.binaryblock + bytes(36))
    assert said(read_volume, tmp_path / "w.nii").startswith(
        "has too many voxels; found '[30000, 30000, 30000]', expected at most 536,870,912."
    )


# --- what is no file ----------------------------------------------------------------------------------------------------------------

READERS: list[tuple[Callable[[Path], object], str]] = [
    (Slide, "s.svs"),
    (read_table, "s.tsv"),
    (read_yaml, "s.yaml"),
    (imported, "s.npz"),
    (imported, "s.h5"),
    (read_bags, "s.h5"),
    (read_matrix, "s.h5"),
    (read_features, "s.h5"),
    (map_features, "s.h5"),
    (read_foreign, "s.h5"),
    (read_foreign, "s.pt"),
    (read_volume, "s.nii.gz"),
    (read_contours, "s.geojson"),
]


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize(("read", "name"), READERS, ids=lambda part: getattr(part, "__name__", part))
def test_a_pipe_a_socket_and_a_device_are_refused_before_they_are_opened(tmp_path, read, name, kind):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    found = {"pipe": "a named pipe", "socket": "a socket", "device": "a device"}[kind]
    assert f"is no regular file; found '{found}', expected a" in said(read, path, seconds=3)


@pytest.mark.parametrize(("read", "name"), READERS, ids=lambda part: getattr(part, "__name__", part))
def test_an_empty_file_a_folder_and_noise_are_input_errors(tmp_path, read, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / name).touch()
    (tmp_path / "folder" / name).mkdir(parents=True)
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / name).write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "bom").mkdir()
    (tmp_path / "bom" / name).write_bytes(b"\xef\xbb\xbf")
    for kind in ("empty", "folder", "noise", "bom"):
        with pytest.raises(InputError) as error:
            read(tmp_path / kind / name)
        assert str(tmp_path / kind / name) in str(error.value)
