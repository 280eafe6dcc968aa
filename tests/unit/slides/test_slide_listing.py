from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic_slides import write_dicom, write_mirax

from pipeline.errors import InputError
from pipeline.slides.listing import list_slides, read_chunk, read_slides, write_slides
from pipeline.slides.provenance import slide_fingerprint
from pipeline.tables import read_table

DEFAULT = "^([^.]+)"  # the pattern of a cohort that states none
LEVELS = [(np.full((side, side, 3), 240, np.uint8), 0.0005 * 64 / side) for side in (64, 32)]


@pytest.fixture
def scans(tmp_path):
    for name in ("TCGA-AA-0001-01Z.b.svs", "TCGA-AA-0001-01Z.a.svs", "TCGA-BB-0002-01Z.svs", "notes.txt", ".hidden.svs"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_gives_ids_without_suffix_and_patients_by_group_one(scans):
    found = list_slides(scans, "*.svs", r"^(TCGA-\w\w-\w{4})")
    assert found["slide_id"].tolist() == ["TCGA-AA-0001-01Z.a", "TCGA-AA-0001-01Z.b", "TCGA-BB-0002-01Z"]
    assert found["patient_id"].tolist() == ["TCGA-AA-0001", "TCGA-AA-0001", "TCGA-BB-0002"]
    assert found["mpp"].isna().all()
    assert list_slides(scans)["patient_id"].tolist() == found["slide_id"].tolist()


def test_one_file_without_a_patient_id_is_listed_under_its_own_name(scans, caplog):
    (scans / "oddity.svs").touch()
    found = list_slides(scans, "*.svs", r"(TCGA-\w\w-\d+)").set_index("slide_id")
    assert found.loc["oddity", "patient_id"] == "oddity"
    assert "oddity.svs: no patient id in the file name" in caplog.text


@pytest.mark.parametrize(
    ("regex", "message"),
    [("(", "not a regular expression"), ("TCGA", "has no group"), (r"(GTEX-\d+)", "no patient id in any file name")],
)
def test_a_regex_that_cannot_work_is_refused(scans, regex, message):
    with pytest.raises(InputError, match=message):
        list_slides(scans, "*.svs", regex)


def test_no_folder_and_no_slide_are_told_apart(scans):
    with pytest.raises(InputError, match="no such folder of slides"):
        list_slides(scans / "absent")
    with pytest.raises(InputError, match=r"no slide found; expected files that match '\*.ndpi'"):
        list_slides(scans, "*.ndpi")
    with pytest.raises(InputError, match="neither a folder nor a table"):
        list_slides()


def test_the_same_id_in_two_folders_is_refused(scans):
    (scans / "more").mkdir()
    (scans / "more" / "TCGA-BB-0002-01Z.svs").touch()
    with pytest.raises(InputError, match="two files have the same slide id"):
        list_slides(scans, "**/*.svs")


def test_a_file_name_that_is_no_safe_id_is_refused(scans):
    (scans / "my slide.svs").touch()
    with pytest.raises(InputError, match="not a usable slide id; found 'my slide'"):
        list_slides(scans)


def table(folder, text):
    path = folder / "slides.tsv"
    path.write_text(text)
    return path


def test_a_table_gives_files_and_resolutions_and_keeps_absent_files(scans):
    text = "slide_id\tpatient_id\tfile\tmpp\nz\tP2\tsub/absent.svs\t0.25\nTCGA-BB-0002-01Z\tP1\t\t\n"
    found = list_slides(table=table(scans, text)).set_index("slide_id")
    assert found.loc["z", "path"] == str(scans / "sub/absent.svs")
    assert found.loc["z", "mpp"] == 0.25
    assert found.loc["TCGA-BB-0002-01Z", "path"] == str(scans / "TCGA-BB-0002-01Z.svs")
    assert math.isnan(found.loc["TCGA-BB-0002-01Z", "mpp"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("../../etc/x\tP\t0.5", "slides.tsv, row 2, column 'slide_id': not a usable slide id; found '../../etc/x'"),
        ("a\t../P\t0.5", "slides.tsv, row 2, column 'patient_id': not a usable patient id; found '../P'"),
        ("a\tP\t0.5\na\tQ\t0.5", "slides.tsv, row 3, column 'slide_id': slide appears twice; found 'a'"),
        ("b\tP\t\na\tP\t-1", "slides.tsv, row 3, column 'mpp': resolution is not positive; found '-1'"),
        ("a\tP\t20x", "slides.tsv, row 2, column 'mpp': cell is not a number; found '20x'"),
        ("", "slides.tsv: no slide found"),
    ],
)
def test_bad_rows_are_named(scans, rows, message):
    with pytest.raises(InputError) as error:
        list_slides(table=table(scans, f"slide_id\tpatient_id\tmpp\n{rows}\n" if rows else "slide_id\tpatient_id\tmpp\n"))
    assert message in str(error.value)


def write_list(folder: Path, path: Path, **options: object) -> str:
    write_slides(list_slides(folder, "**/*.svs"), path, folder, **options)
    return path.read_text()


def test_the_list_is_the_same_wherever_the_cohort_lies_and_whatever_its_times(tmp_path):
    (tmp_path / "home/sub").mkdir(parents=True)
    for name in ("a.svs", "sub/b.svs"):
        (tmp_path / "home" / name).write_text(name)
    text = write_list(tmp_path / "home", tmp_path / "slides.tsv")
    rows = [f"{s}\t{s}\t{path}\t\t\t{slide_fingerprint(tmp_path / 'home' / path)}\n" for s, path in (("a", "a.svs"), ("b", "sub/b.svs"))]
    assert text == "slide_id\tpatient_id\tpath\tmpp\tmd5\tfingerprint\n" + "".join(rows)
    os.utime(tmp_path / "home/a.svs", (1, 1))
    assert write_list(tmp_path / "home", tmp_path / "slides.tsv") == text
    shutil.copytree(tmp_path / "home", tmp_path / "elsewhere")
    assert write_list(tmp_path / "elsewhere", tmp_path / "slides.tsv") == text
    assert read_slides(tmp_path / "slides.tsv", tmp_path / "home")["path"].tolist() == [
        str(tmp_path / "home" / path) for path in ("a.svs", "sub/b.svs")
    ]
    assert len(read_chunk(tmp_path / "slides.tsv", 0, 1, tmp_path / "home")) == 2
    (tmp_path / "home/a.svs").write_text("A.svs")
    assert write_list(tmp_path / "home", tmp_path / "slides.tsv") != text


def test_the_path_of_a_table_is_absolute_only_where_it_lies_elsewhere(scans, tmp_path_factory, monkeypatch):
    outside = tmp_path_factory.mktemp("outside") / "o.svs"
    names = [str(outside), str(scans / "TCGA-BB-0002-01Z.svs"), "../up.svs", "gone.svs"]
    text = "slide_id\tpatient_id\tfile\n" + "".join(f"s{i}\tp\t{name}\n" for i, name in enumerate(names))
    expected = [str(outside), "TCGA-BB-0002-01Z.svs", "../up.svs", "gone.svs"]
    monkeypatch.chdir(scans.parent)
    for folder in (scans, Path(scans.name)):
        write_slides(list_slides(folder, table=table(scans, text)), scans / "list.tsv", folder)
        listed = read_table(scans / "list.tsv")
        assert listed["path"].tolist() == expected
        assert listed["fingerprint"].notna().tolist() == [False, True, False, False]  # what is absent has none, and fails later
        write_slides(list_slides(folder, table=table(scans, text)), scans / "list.tsv", folder, None)
        assert read_table(scans / "list.tsv")["fingerprint"].isna().all()


def test_slides_of_the_same_bytes_are_said(tmp_path, caplog):
    for name, content in (("a", "x"), ("b", "y"), ("c", "x")):
        (tmp_path / f"{name}.svs").write_text(content)
    write_list(tmp_path, tmp_path / "slides.tsv")
    assert caplog.messages == ["the slides a, c have the same bytes: each counts as a slide of its own"]


def test_files_that_belong_to_a_slide_are_no_slides(tmp_path):
    write_mirax(tmp_path / "m.mrxs")
    (tmp_path / "s.vms").write_text("[Virtual Microscope Specimen]\nImageFile=s_0.jpg\n")
    (tmp_path / "t.vms").write_text("[Virtual Microscope Specimen]\nImageFile=t.vms\nMapFile=s.vms\n")  # no file hides a slide
    (tmp_path / "set.ndpis").write_text("[NanoZoomer Digital Pathology Image Set]\nNoImages=1\nImage0=n.ndpi\n")
    for name in ("s_0.jpg", "n.ndpi", "p.jpg"):
        (tmp_path / name).touch()
    found = list_slides(tmp_path, "**/*")
    assert sorted(Path(path).name for path in found["path"]) == ["m.mrxs", "n.ndpi", "p.jpg", "s.vms", "set.ndpis", "t.vms"]


def test_a_dicom_series_is_one_slide_named_by_its_folder(tmp_path, caplog):
    for patient in ("P1-A", "P2-A"):
        (tmp_path / patient).mkdir()
        write_dicom(tmp_path / patient, LEVELS)
    found = list_slides(tmp_path, "**/*.dcm", r"^([^-]+)")
    assert found[["slide_id", "patient_id"]].to_numpy().tolist() == [["P1-A", "P1"], ["P2-A", "P2"]]
    assert found["path"].tolist() == [str(tmp_path / slide / "level0.dcm") for slide in found["slide_id"]]
    assert list_slides(tmp_path, "**/level1.dcm", DEFAULT)["path"].tolist() == found["path"].tolist()  # whichever file is found
    assert not caplog.messages


def test_a_dicom_file_alone_in_its_series_is_named_as_any_file(tmp_path):
    for slide in ("P1", "P2"):
        (file,) = write_dicom(tmp_path, LEVELS[:1])
        file.rename(tmp_path / f"{slide}.dcm")
    assert list_slides(tmp_path, "*.dcm", DEFAULT)["slide_id"].tolist() == ["P1", "P2"]


def series(folder: Path) -> str:
    from pydicom import dcmread

    return str(dcmread(write_dicom(folder, LEVELS)[0]).SeriesInstanceUID)


def test_a_patient_is_never_named_by_the_beginning_of_a_uid(tmp_path, caplog):
    uid = series(tmp_path)
    with pytest.raises(InputError) as error:
        list_slides(tmp_path, "*.dcm", DEFAULT)
    assert str(error.value) == (
        f"{tmp_path / 'level0.dcm'}: the names are DICOM UIDs, whose first numbers name no patient; found '{uid}', expected a match of "
        "'^([^.]+)' that is no beginning of a UID. Correct `slides.patient_id_pattern`, narrow `slides.pattern`, or list the slides in a "
        "slide table."
    )
    (tmp_path / "P1.svs").touch()
    found = list_slides(tmp_path, "*", DEFAULT).set_index("slide_id")
    assert found["patient_id"].to_dict() == {uid: uid, "P1": "P1"}
    assert caplog.messages == [
        f"{tmp_path / 'level0.dcm'}: a UID of DICOM ({uid}), whose first numbers name no patient; it is listed under its own name. "
        "Correct `slides.patient_id_pattern`, narrow `slides.pattern`, or list the slides in a slide table."
    ]
    assert list_slides(tmp_path, "*.dcm")["patient_id"].tolist() == [uid]  # asked for: the whole of it
    assert list_slides(tmp_path, "*.dcm", r"\.(\d+)$")["patient_id"].tolist() == [uid.rpartition(".")[2]]


def test_a_table_may_name_a_series_by_its_id(tmp_path):
    (tmp_path / "S1").mkdir()
    write_dicom(tmp_path / "S1", LEVELS)
    found = list_slides(tmp_path, "**/*.dcm", table=table(tmp_path, "slide_id\tpatient_id\nS1\tP9\n"))
    assert found[["patient_id", "path"]].to_numpy().tolist() == [["P9", str(tmp_path / "S1/level0.dcm")]]
