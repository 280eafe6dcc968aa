from __future__ import annotations

import math

import pytest

from pipeline.errors import InputError
from pipeline.slides.listing import list_slides


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
