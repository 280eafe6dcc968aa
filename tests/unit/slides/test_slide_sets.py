"""Slides of many files: which files belong together, and that any of them changes the fingerprint."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from synthetic_slides import write_dicom, write_mirax

from pipeline.errors import InputError
from pipeline.slides.dicom import Header, read_header
from pipeline.slides.filesets import series_of, slide_files
from pipeline.slides.opening import Slide
from pipeline.slides.provenance import fingerprint, slide_fingerprint

WHITE = np.full((64, 64, 3), 240, np.uint8)


def write_vms(folder: Path) -> Path:
    for name in ("s.jpg", "s(1,0).jpg", "s_map2.jpg", "s.opt"):
        (folder / name).write_bytes(name.encode() * 99)
    names = "ImageFile=s.jpg\r\nImageFile(1,0)=s(1,0).jpg\r\nMapFile=s_map2.jpg\r\nOptimisationFile=s.opt\r\nMapScale=64\r\n"
    path = folder / "s.vms"
    path.write_text(f"[Virtual Microscope Specimen]\r\nNoLayers=1\r\nNoJpegColumns=2\r\n{names}MacroImage=s_macro.jpg\r\nAuthCode=1\r\n")
    return path


def write_ndpis(folder: Path) -> Path:
    path = folder / "s.ndpis"
    path.write_text("[NanoZoomer Digital Pathology Image Set]\nNoImages=2\nImage0=s-DAPI.ndpi\nImage1=s-FITC.ndpi\n")
    for name in ("s-DAPI.ndpi", "s-FITC.ndpi"):
        (folder / name).write_bytes(b"II" + name.encode())
    return path


def names(path: Path) -> list[str]:
    return [os.path.relpath(file, path.parent) for file in slide_files(path)]


def test_the_files_of_every_kind_of_set_are_told(tmp_path):
    assert names(write_mirax(tmp_path / "m.mrxs")) == ["m.mrxs", "m/Slidedat.ini", "m/Index.dat", "m/Data0000.dat", "m/Data0001.dat"]
    assert names(write_vms(tmp_path)) == ["s.vms", "s.jpg", "s(1,0).jpg", "s_map2.jpg", "s.opt", "s_macro.jpg"]
    assert names(write_ndpis(tmp_path)) == ["s.ndpis", "s-DAPI.ndpi", "s-FITC.ndpi"]
    (tmp_path / "d").mkdir()
    write_dicom(tmp_path / "d", [(WHITE, 0.0005), (WHITE[::2, ::2].copy(), 0.001)])
    assert names(tmp_path / "d/level1.dcm") == ["level0.dcm", "level1.dcm"]
    assert names(tmp_path / "s-DAPI.ndpi") == ["s-DAPI.ndpi"]
    assert names(tmp_path / "absent.mrxs") == ["absent.mrxs"]


@pytest.mark.parametrize("write", [lambda at: write_mirax(at / "m.mrxs"), write_vms, write_ndpis])
def test_a_change_of_any_file_of_a_set_is_seen_and_no_move(tmp_path, write):
    home = tmp_path / "home"
    home.mkdir()
    path = write(home)
    prints = {slide_fingerprint(path)}
    files = slide_files(path)
    for number, file in enumerate(files[1:], start=2):
        whole = file.read_bytes() if file.exists() else None  # the macro image of s.vms is absent
        file.write_bytes(b"x" + (whole or b"")[1:])  # as long as before
        prints.add(slide_fingerprint(path))
        assert len(prints) == number
        file.unlink() if whole is None else file.write_bytes(whole)
    (home / "notes.txt").write_text("belongs to no slide")
    moved = Path(shutil.copytree(home, tmp_path / "elsewhere")) / path.name
    assert slide_fingerprint(moved) == slide_fingerprint(path)
    assert slide_fingerprint(moved) in prints


def test_a_mirax_whose_copy_is_completed_is_another_slide_each_time(tmp_path):
    path = write_mirax(tmp_path / "whole/m.mrxs")
    half, prints = tmp_path / "half/m.mrxs", []
    for file in slide_files(path):
        copy = half.parent / file.relative_to(path.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
        prints.append(slide_fingerprint(half))
    assert len(set(prints)) == 5
    assert prints[-1] == slide_fingerprint(path)


def test_a_slide_of_one_file_keeps_the_fingerprint_it_had(tmp_path):
    path = tmp_path / "s.svs"
    path.write_bytes(bytes(range(256)) * 1000)
    assert slide_fingerprint(path) == fingerprint(path) == "dfb930ab3a3e4b31"


def test_each_series_of_a_folder_is_a_set_of_its_own(tmp_path):
    (first,) = write_dicom(tmp_path, [(WHITE, 0.0005)])
    other = shutil.move(first, tmp_path / "a.dcm")
    pair = write_dicom(tmp_path, [(WHITE, 0.0005), (WHITE[::2, ::2].copy(), 0.001)])
    (tmp_path / "readme.txt").write_text("no DICOM")
    assert slide_files(other) == (Path(other),)
    assert slide_files(pair[1]) == tuple(pair)
    assert slide_fingerprint(pair[0]) == slide_fingerprint(pair[1]) != slide_fingerprint(other)
    assert sorted(map(len, series_of(tmp_path).values())) == [1, 2]


def test_the_file_to_open_of_a_series_has_pixels_of_the_slide(tmp_path):
    files = write_dicom(tmp_path, [(WHITE, 0.0005), (WHITE[::2, ::2].copy(), 0.001)])
    label = dcmread(files[1])
    label.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    label.save_as(tmp_path / "a_label.dcm")
    files[1].unlink()
    assert [file.name for file in slide_files(files[0])] == ["level0.dcm", "a_label.dcm"]
    with Slide(slide_files(tmp_path / "a_label.dcm")[0]) as slide:
        assert slide.dimensions == (64, 64)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_a_header_is_read_behind_nested_sequences_of_either_kind(tmp_path, syntax, undefined):
    inner, middle, data = Dataset(), Dataset(), Dataset()
    inner.SeriesInstanceUID = "1.2.3"  # not the one that is looked for
    inner.ImageType = ["A", "B", "C"]
    middle.ReferencedSeriesSequence = Sequence([inner, inner])
    data.ImageType, data.PatientName, data.SeriesInstanceUID = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "P" * 301, generate_uid()
    data.RequestAttributesSequence, data.ReferencedStudySequence = Sequence([middle]), Sequence([middle, Dataset()])
    data.add_new(0x00090010, "LO", "OURS")
    data.add_new(0x00091001, "UN", b"\0" * 70_000)
    for sequence in (data["ReferencedStudySequence"], middle["ReferencedSeriesSequence"]):
        sequence.is_undefined_length = undefined
        for item in sequence.value:
            item.is_undefined_length_sequence_item = undefined
    data.ensure_file_meta()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.6", generate_uid()
    data.save_as(tmp_path / "s.dcm", enforce_file_format=True)
    assert dcmread(tmp_path / "s.dcm").SeriesInstanceUID == data.SeriesInstanceUID
    assert read_header(tmp_path / "s.dcm") == Header(data.SeriesInstanceUID, ("ORIGINAL", "PRIMARY", "VOLUME", "NONE"))


def test_a_damaged_header_is_none_or_read_within_a_moment(tmp_path):
    (path,) = write_dicom(tmp_path, [(WHITE, 0.0005)])
    whole, rng, start = path.read_bytes()[:2000], np.random.default_rng(1), time.process_time()
    for _ in range(100):
        content = bytearray(whole)
        content[int(rng.integers(132, 1000))] = int(rng.integers(256))
        path.write_bytes(content[: int(rng.integers(140, 2000))])
        assert read_header(path) is None or read_header(path).series
    path.write_bytes(whole[:132] + b"\x08\x00\x05\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 100_000)
    assert read_header(path) is None  # a hundred thousand sequences, each in the one before
    assert time.process_time() - start < 3


def test_what_is_no_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "s.vms").write_text("[Virtual Microscope Specimen]\nImageFile=pipe.jpg\nMapFile=/dev/zero\n")
    os.mkfifo(tmp_path / "s.svs")
    assert slide_fingerprint(tmp_path / "s.vms")
    with pytest.raises(InputError, match=r"s\.svs: is no regular file; found 'a named pipe', expected a slide file\."):
        slide_fingerprint(tmp_path / "s.svs")
    with pytest.raises(InputError, match=r"s\.svs: is no regular file; found 'a named pipe', expected a slide file\."):
        Slide(tmp_path / "s.svs")
