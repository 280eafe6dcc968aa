import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.cohort.labels import label_like
from pipeline.cohort.vectors import read_vectors
from pipeline.errors import InputError

REAL = os.environ.get("SLIDE2SURV_REALDATA")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_text("patient_id\tage\tsmoking_status\tsubtype\tg_2\tg_1\nP2\t60\t1\tIDC\t5\t6\nP1\tNA\t0\tILC\t7\t8\nP3\t\t\tIDC\tNA\t\n")
    return path


def test_all_numeric_columns_are_read_and_a_patient_without_values_lacks_the_modality(table, caplog):
    with caplog.at_level("INFO"):
        vectors = read_vectors(table)
    assert vectors.columns == ("age", "smoking_status", "g_2", "g_1")
    assert vectors.patients == ("P1", "P2")
    np.testing.assert_array_equal(vectors.values, np.float32([[np.nan, 0, 7, 8], [60, 1, 5, 6]]))
    assert "1 columns hold text and are not read: subtype" in caplog.text


def test_listed_columns_keep_their_order_and_patterns_that_of_the_table(table):
    assert read_vectors(table, ["g_1", "age"]).columns == ("g_1", "age")
    assert read_vectors(table, ["age", "g_*", "g_1"]).columns == ("age", "g_2", "g_1")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["agee"], "c.tsv: lacks the column 'agee'; found 'age, smoking_status, subtype, g_2, g_1', expected 'agee'. Did you mean 'age'?"),
        (
            ["subtype"],
            "c.tsv, row 2, column 'subtype': cell is not a number; found 'IDC', expected a finite number or an empty cell. "
            "Correct the cell, or leave it empty.",
        ),
    ],
)
def test_listed_columns_that_cannot_be_used_are_named(table, columns, message):
    with pytest.raises(InputError) as error:
        read_vectors(table, columns)
    assert str(error.value).replace(f"{table.parent}/", "") == message


@pytest.mark.parametrize("columns", [None, ["age", "os_months"], ["*"]])
def test_an_outcome_is_refused_however_it_is_asked_for(tmp_path, columns):
    (tmp_path / "c.tsv").write_text("patient_id\tage\tos_months\nP1\t1\t2\n")
    with pytest.raises(InputError) as error:
        read_vectors(tmp_path / "c.tsv", columns)
    assert str(error.value) == (
        f"{tmp_path}/c.tsv, column 'os_months': looks like an outcome or a split and is refused as a feature; expected features only. "
        "Remove the column from the table or list the feature columns; if it truly is a feature, rename it."
    )


def test_outcomes_beside_the_listed_features_do_no_harm(tmp_path):
    (tmp_path / "c.tsv").write_text("patient_id\tage\tos_months\nP1\t1\t2\n")
    assert read_vectors(tmp_path / "c.tsv", ["age"]).columns == ("age",)


def test_a_table_of_text_alone_holds_no_vector(tmp_path):
    (tmp_path / "c.tsv").write_text("patient_id\tsubtype\nP1\tIDC\n")
    with pytest.raises(InputError, match="holds no numeric value; found 'subtype', expected at least one numeric column"):
        read_vectors(tmp_path / "c.tsv")


@pytest.mark.parametrize(
    "name",
    ["smoking_status", "resection_status", "hpv_association_p16", "time_to_surgery", "age_at_initial_diagnosis", "blood_test", "mcv"],
)
def test_clinical_features_are_not_taken_for_outcomes(name):
    assert not label_like(name)


@pytest.mark.parametrize(
    "name",
    [
        "status",
        "time_months",
        "fold",
        "days_to_last_information",
        "rfs_event",
        "y_3y_os",
        "label_5y",
        "pf_split_01",
        "Censorship",
        "is_alive",
        "PFI.time.1",
    ],
)
def test_outcomes_and_splits_of_public_tables_are_recognised(name):
    assert label_like(name)


@pytest.mark.realdata
@pytest.mark.skipif(not REAL or not Path(REAL).is_dir(), reason="SLIDE2SURV_REALDATA does not name the folder of real data")
@pytest.mark.parametrize(
    ("name", "patients", "width"),
    [("clinical", 763, 4), ("pathological", 763, 15), ("blood", 692, 16), ("icd", 712, 40), ("cell_density", 736, 4)],
)
def test_the_five_tables_of_hancock(name, patients, width):
    vectors = read_vectors(f"{REAL}/hancock/{name}.tsv")
    assert (len(vectors.columns), vectors.values.dtype) == (width, np.float32)
    assert len(vectors.patients) <= patients
    with pytest.raises(InputError, match="refused as a feature"):
        read_vectors(f"{REAL}/hancock/labels.tsv")
