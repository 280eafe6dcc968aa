import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohort.followup import read_followup
from pipeline.errors import InputError

HEADER = "case\tos\tdead\n"


def read(tmp_path, rows: str, **options):
    path = tmp_path / "f.tsv"
    path.write_text(HEADER + rows.replace(" ", "\t"))
    return read_followup(path, time="os", event="dead", patient_id="case", **options)


def message(tmp_path, rows: str, **options) -> str:
    with pytest.raises(InputError) as error:
        read(tmp_path, rows, **options)
    return str(error.value).replace(f"{tmp_path}/", "")


def test_patients_come_sorted_with_months_and_an_integer_event(tmp_path):
    patients = read(tmp_path, "P2 12.5 1\nP1 0 0.0\n").patients
    assert patients.to_dict("list") == {"patient_id": ["P1", "P2"], "time": [0.0, 12.5], "event": [0, 1]}
    assert patients["event"].dtype.kind == "i"


def test_days_become_months_of_the_mean_gregorian_length(tmp_path):
    assert read(tmp_path, "P1 365.25 1\n", unit="days").patients["time"].tolist() == [12.0]


def test_rows_without_time_or_event_are_excluded_and_listed_with_their_place(tmp_path):
    followup = read(tmp_path, "P1 NA 1\nP3 5 1\nP2 3 \n")
    assert followup.patients["patient_id"].tolist() == ["P3"]
    excluded = followup.excluded.set_index("id")
    assert excluded["reason"].str.replace(f"{tmp_path}/", "").to_dict() == {
        "P1": "f.tsv, row 2, column 'os': cell is empty; expected months of follow-up.",
        "P2": "f.tsv, row 4, column 'dead': cell is empty; expected 0 or 1.",
    }
    assert set(excluded["stage"]) == {"follow-up"}
    assert set(excluded["remedy"]) == {"Fill in the cell to include the patient."}


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (
            "P1 1 1\nP1 2 0\n",
            {},
            "f.tsv, row 3, column 'case': patient appears twice (first in row 2); found 'P1', expected one row a patient. "
            "Keep one row; which one is right cannot be guessed.",
        ),
        (
            "P1 -0.5 1\n",
            {},
            "f.tsv, row 2, column 'os': time is negative; found '-0.5', expected 0 or more. Correct the row or empty the cell.",
        ),
        (
            "P1 1 0\nP2  1\n",
            {"on_bad_row": "stop", "unit": "days"},
            "f.tsv, row 3, column 'os': cell is empty; expected days of follow-up. Fill in the cell to include the patient.",
        ),
        (
            "P1 1 0\nP2 1 2\n",
            {},
            "f.tsv, row 3, column 'dead': event flag is neither 0 nor 1; found '2', expected 0 or 1. Code 1 = event, 0 = censored.",
        ),
        (
            "P1 1 dead\n",
            {},
            "f.tsv, row 2, column 'dead': cell is not a number; found 'dead', expected a finite number or an empty cell. "
            "Correct the cell, or leave it empty.",
        ),
        (
            "../x 1 1\n",
            {},
            "f.tsv, row 2, column 'case': not a usable patient id; found '../x', expected letters, digits, '.', '_', '+', '-', starting "
            "with a letter or digit, without '..'. Rename the patient in every table; ids become file names and are never followed out of "
            "the results folder.",
        ),
        ("P1 NA 1\n", {}, "f.tsv: no patient has both time and event; expected columns 'os' and 'dead' filled in."),
        ("", {}, "f.tsv: no patient has both time and event; expected columns 'os' and 'dead' filled in."),
        ("P1 1 1\n", {"unit": "month"}, "f.tsv: unknown unit; found 'month', expected months or days. Did you mean 'months'?"),
        ("P1 1 1\n", {"on_bad_row": "ignore"}, "f.tsv: unknown on_bad_row; found 'ignore', expected exclude or stop."),
    ],
)
def test_faults_of_the_table_stop_with_an_exact_message(tmp_path, rows, options, expected):
    assert message(tmp_path, rows, **options) == expected


def test_an_unknown_column_is_named_with_the_nearest_one(tmp_path):
    (tmp_path / "f.tsv").write_text("patient_id\tos_months\tevent\nP\t1\t1\n")
    with pytest.raises(InputError, match=r"lacks the column 'os_month'; .* Did you mean 'os_months'\?"):
        read_followup(tmp_path / "f.tsv", time="os_month", event="event")


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(5)))
def test_the_order_of_rows_does_not_matter(tmp_path_factory, order):
    rows = ["P1 1.5 1", "P2 NA 0", "P3 0 1", "P4 7 0", "P5 2 NA"]
    shuffled = read(tmp_path_factory.mktemp("f"), "\n".join(rows[i] for i in order) + "\n")
    plain = read(tmp_path_factory.mktemp("f"), "\n".join(rows) + "\n")
    assert shuffled.patients.equals(plain.patients)
    assert np.array_equal(shuffled.excluded["id"], plain.excluded["id"])
