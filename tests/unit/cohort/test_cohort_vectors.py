import numpy as np
import pytest

from pipeline.cohort.vectors import read_vectors
from pipeline.errors import InputError


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_text("patient_id\tage\tsmoking_status\tsubtype\tg_2\tg_1\nP2\t60\t1\tIDC\t5\t6\nP1\tNA\t0\tILC\t7\t8\nP3\t\t\tIDC\tNA\t\n")
    return path


def test_numbers_and_short_text_are_read_and_a_patient_without_values_lacks_the_modality(table):
    vectors = read_vectors(table)
    assert vectors.columns == ("age", "smoking_status", "subtype=IDC", "subtype=ILC", "g_2", "g_1")
    assert (vectors.patients, vectors.empty) == (("P1", "P2", "P3"), ())
    np.testing.assert_array_equal(
        vectors.values, np.float32([[np.nan, 0, 0, 1, 7, 8], [60, 1, 1, 0, 5, 6], [np.nan, np.nan, 1, 0, np.nan, np.nan]])
    )
    numbers = read_vectors(table, ["age", "g_*"])
    assert (numbers.patients, numbers.empty) == (("P1", "P2"), ("P3",))


def test_text_of_many_values_is_not_read_and_said_so(tmp_path, caplog):
    rows = "".join(f"P{i:02d}\t{i}\tnote {i}\tcode {i % 20:02d}\n" for i in range(21))
    (tmp_path / "c.tsv").write_text("patient_id\tage\tremark\tunit\n" + rows)
    with caplog.at_level("INFO"):
        vectors = read_vectors(tmp_path / "c.tsv")
    assert vectors.columns == ("age", *(f"unit=code {i:02d}" for i in range(20)))
    assert "1 columns hold text of more than 20 values and are not read: remark" in caplog.text
    assert len(read_vectors(tmp_path / "c.tsv", categorical=["remark"]).columns) == 1 + 21 + 20


def test_codes_become_a_column_a_value_sorted_as_numbers_and_a_missing_one_gives_zeros(tmp_path):
    (tmp_path / "c.tsv").write_text("patient_id\tage\tsite\nP1\t1\t10\nP2\t2\t2\nP3\t3\t2.0\nP4\t4\tNA\n")
    vectors = read_vectors(tmp_path / "c.tsv", categorical=["site"])
    assert vectors.columns == ("age", "site=2", "site=10")
    np.testing.assert_array_equal(vectors.values, np.float32([[1, 0, 1], [2, 1, 0], [3, 1, 0], [4, 0, 0]]))


def test_the_order_of_rows_changes_neither_columns_nor_values(tmp_path):
    rows = ["P1\tb\t1", "P2\ta\t", "P3\tc\t3", "P4\t\t"]
    read = []
    for order in (rows, rows[::-1]):
        (tmp_path / "c.tsv").write_text("\n".join(["patient_id\tkind\tage", *order, ""]))
        read.append(read_vectors(tmp_path / "c.tsv"))
    np.testing.assert_array_equal(read[0].values, read[1].values)
    assert (read[0].patients, read[0].columns, read[0].empty) == (read[1].patients, read[1].columns, read[1].empty)


def test_a_categorical_column_that_is_not_read_is_a_contradiction(table):
    with pytest.raises(InputError) as error:
        read_vectors(table, ["age"], categorical=["subtype"])
    assert str(error.value).replace(f"{table.parent}/", "") == (
        "c.tsv, column 'subtype': is categorical but is not read; expected a column of `columns`. "
        "List it under `columns` too, or not under `categorical`."
    )


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
            "Correct the cell or leave it empty; a column of codes or words stands under `categorical` too.",
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


def test_a_table_of_long_text_alone_holds_no_vector(tmp_path):
    (tmp_path / "c.tsv").write_text("patient_id\tremark\n" + "".join(f"P{i}\tnote {i}\n" for i in range(21)))
    with pytest.raises(InputError) as error:
        read_vectors(tmp_path / "c.tsv")
    assert str(error.value).replace(f"{tmp_path}/", "") == (
        "c.tsv: holds no value that can be read; found 'remark', expected numbers, or text of few different values."
    )


HANCOCK_CODES = {
    "clinical": ["smoking_status"],
    "pathological": [
        "primary_tumor_site",
        "grading",
        "hpv_association_p16",
        "resection_status",
        "resection_status_carcinoma_in_situ",
        "histologic_type",
    ],
}


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "patients", "raw", "encoded"),
    [("clinical", 763, 4, 7), ("pathological", 763, 15, 37), ("blood", 692, 16, 16), ("icd", 712, 40, 40), ("cell_density", 736, 4, 4)],
)
def test_the_five_tables_of_hancock_have_the_published_widths(realdata, name, patients, raw, encoded):
    file = realdata / f"hancock/{name}.tsv"
    assert read_vectors(file).values.shape[1] == raw
    vectors = read_vectors(file, categorical=HANCOCK_CODES.get(name, []))
    assert vectors.values.shape == (len(vectors.patients), encoded)
    assert len(vectors.patients) + len(vectors.empty) == patients


@pytest.mark.realdata
def test_the_labels_of_hancock_are_no_features(realdata):
    with pytest.raises(InputError, match="refused as a feature"):
        read_vectors(realdata / "hancock/labels.tsv")


def test_codes_are_known_to_those_who_have_them(tmp_path):
    (tmp_path / "c.tsv").write_text("patient_id\tage\tsite\nA\t1\tlung\nB\t1\tskin\nC\t2\tlung\n")
    vectors = read_vectors(tmp_path / "c.tsv")
    assert vectors.columns == ("age", "site=lung", "site=skin")
    assert vectors.codes.tolist() == [False, True, True]
    assert vectors.known_to(np.array([0, 2])).tolist() == [0, 1]
    assert vectors.known_to(np.array([1])).tolist() == [0, 2], "a number stays, whatever it is"
