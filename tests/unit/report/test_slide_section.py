import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import pipeline
from pipeline.errors import InputError
from pipeline.report.slides import LAID, MAX_SUSPECTS, read_manifests, slide_section
from pipeline.tables import write_table

QUALITY = ["slide_id", "status", "stage", "reason", "patches", "mpp_source", "tissue_mm2", "flags"]
MANIFEST = ["slide_id", "status", "patches", "mpp", "mpp_source", "tissue_mm2"]
NO_SLIDES = read_manifests([])


def ok(slide: str, flags: str = "", patches: object = 100, source: str = "header", tissue: object = 12.5) -> tuple:
    return slide, "ok", "patches", "", patches, source, tissue, flags


def failed(slide: str, stage: str = "tissue") -> tuple:
    return slide, "failed", stage, f"slide {slide}: no tissue found.", None, "", None, ""


@pytest.fixture
def section(tmp_path: Path):
    def make(*rows: tuple) -> dict:
        write_table(pd.DataFrame(rows, columns=QUALITY), tmp_path / "qc.tsv")
        return slide_section(NO_SLIDES, tmp_path / "qc.tsv")

    return make


def test_slides_area_patches_and_sources_are_counted_over_the_slides_used(section):
    found = section(ok("A"), ok("B", source="table", tissue=7.5), ok("C", patches=50), failed("D"))
    expected = {"stage": LAID, "used": 3, "failed": 1, "tissue_mm2": 32.5, "patches": 250, "resolution": "header (2), table (1)"}
    assert found["rows"] == [expected]


def test_failed_slides_come_first_and_flags_are_counted(section):
    found = section(ok("A", "pen"), ok("B"), failed("D", "patches"), ok("C", "blurred;pen"), failed("E"))
    assert [(s["slide"], s["flags"], s["reason"]) for s in found["suspects"]] == [
        ("D", ["failed: patches"], "slide D: no tissue found."),
        ("E", ["failed: tissue"], "slide E: no tissue found."),
        ("A", ["pen"], ""),
        ("C", ["blurred", "pen"], ""),
    ]
    assert found["flags"] == [("failed", 2), ("pen", 2), ("blurred", 1)]
    assert (found["more"], found["of"]) == (0, 5)


def test_at_most_fifty_suspects_are_listed_and_the_rest_counted(section):
    found = section(*(ok(f"S{i:03d}", "pen") for i in range(MAX_SUSPECTS + 7)), failed("Z"))
    assert len(found["suspects"]) == MAX_SUSPECTS
    assert found["suspects"][0]["slide"] == "Z", "a failed slide is never among those that are only counted"
    assert found["more"] == 8
    assert found["flags"] == [("failed", 1), ("pen", MAX_SUSPECTS + 7)]


def test_a_cohort_without_a_suspect_has_none(section):
    found = section(ok("A"), ok("B"))
    assert (found["suspects"], found["flags"], found["of"]) == ([], [], 2)


def test_a_cohort_all_of_whose_slides_failed_is_shown(section):
    found = section(failed("A"), failed("B"))
    assert (found["rows"][0]["used"], found["rows"][0]["failed"], found["rows"][0]["patches"]) == (0, 2, 0)


def test_features_made_elsewhere_have_a_row_and_no_suspects(tmp_path: Path):
    rows = [("A", "ok", 10, None, None, None), ("B", "failed", None, None, None, None)]
    write_table(pd.DataFrame(rows, columns=MANIFEST), tmp_path / "manifest-uni.tsv")
    found = slide_section(read_manifests([tmp_path / "manifest-uni.tsv"]), None)
    (row,) = found["rows"]
    assert (row["stage"], row["used"], row["failed"], row["patches"], row["resolution"]) == ("uni", 1, 1, 10, "unknown (1)")
    assert pd.isna(row["tissue_mm2"]), "not known is not 0"
    assert found["suspects"] == []


def test_a_figure_that_is_none_is_told_with_its_row(section, tmp_path: Path):
    with pytest.raises(InputError, match=r"qc\.tsv.*row 3.*column 'patches'.*found 'many'"):
        section(ok("A"), ok("B", patches="many"))


def test_the_section_needs_no_heavy_library():
    source = str(Path(pipeline.__file__).parents[1])
    code = "import sys, pipeline.report.slides; print({'torch', 'cv2', 'h5py', 'matplotlib', 'openslide'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": source}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert found.strip() == "set()"
