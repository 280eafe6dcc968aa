import numpy as np
import pandas as pd
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


def read_binary(tmp_path, rows: str, **options):
    path = tmp_path / "f.tsv"
    path.write_text(HEADER.replace("\n", "\tlabel\n") + rows.replace(" ", "\t"))
    return read_followup(path, kind="binary", patient_id="case", **options)


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
            "f.tsv, row 3, column 'dead': event flag is neither 0 nor 1; found '2', expected 0 or 1. Code 1 = event, 0 = censored, or "
            "state `event_values` and `censored_values`.",
        ),
        (
            "P1 1 dead\n",
            {},
            "f.tsv, row 2, column 'dead': event flag is neither 0 nor 1; found 'dead', expected 0 or 1. Code 1 = event, 0 = censored, or "
            "state `event_values` and `censored_values`.",
        ),
        (
            "../x 1 1\n",
            {},
            "f.tsv, row 2, column 'case': not a usable patient id; found '../x', expected letters, digits, '.', '_', '+', '-', starting "
            "with a letter or digit, without '..'. Rename the patient in every table; ids become file names and are never followed out of "
            "the results folder.",
        ),
        (
            "P1 NA 1\n",
            {},
            "f.tsv: no patient has a usable endpoint; found '1 left out: time or event missing', expected 'os' and 'dead' filled in.",
        ),
        ("", {}, "f.tsv: no patient has a usable endpoint; found 'an empty table', expected 'os' and 'dead' filled in."),
        ("P1 1 1\n", {"unit": "month"}, "f.tsv: unknown unit; found 'month', expected months or days or years. Did you mean 'months'?"),
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


def test_years_become_twelve_months(tmp_path):
    assert read(tmp_path, "P1 2.5 1\n", unit="years").patients["time"].tolist() == [30.0]


def test_an_event_in_words_is_read_letter_by_letter(tmp_path):
    words = {"event_values": ["1:DECEASED", "Dead"], "censored_values": ["0:LIVING"]}
    patients = read(tmp_path, "P1 1 1:DECEASED\nP2 2 0:LIVING\nP3 3 Dead\nP4 4 NA\n", **words).patients
    assert patients["event"].tolist() == [1, 0, 1]
    assert message(tmp_path, "P1 1 1:DECEASED\nP2 2 dead\n", **words) == (
        "f.tsv, row 3, column 'dead': event flag is not a listed value; found 'dead', expected '1:DECEASED' or 'Dead' or '0:LIVING'. "
        "Add it to `event_values` or `censored_values`, or to `exclude_values` to leave such patients out."
    )


def test_patients_whom_the_definition_leaves_out_are_listed_and_not_asked_for_their_cells(tmp_path):
    (tmp_path / "f.tsv").write_text("id\tt\te\tcause\nA\t-3\t?\tother\nB\t5\t1\ttumour\nC\t\t0\t\nD\t9\t-1\t\n")
    followup = read_followup(
        tmp_path / "f.tsv",
        time="t",
        event="e",
        patient_id="id",
        drop={"column": "cause", "values": ["other"]},
        exclude_values=[-1],
    )
    assert followup.patients["patient_id"].tolist() == ["B"]
    assert followup.by_definition == {"A", "D"}
    assert followup.flow.to_numpy().tolist() == [
        ["in the follow-up table", 4, 0, ""],
        ["within the endpoint's definition", 3, 1, "cause: other"],
        ["not marked as unusable", 2, 1, "e: -1"],
        ["with usable follow-up", 1, 1, "time or event missing"],
    ]
    excluded = followup.excluded.assign(reason=followup.excluded["reason"].str.replace(f"{tmp_path}/", ""))
    assert excluded[["id", "reason", "remedy"]].to_numpy().tolist() == [
        [
            "A",
            "f.tsv, column 'cause': the endpoint leaves this value out; found 'other'.",
            "Remove the value from `drop` to keep the patient.",
        ],
        ["C", "f.tsv, row 4, column 't': cell is empty; expected months of follow-up.", "Fill in the cell to include the patient."],
        [
            "D",
            "f.tsv, column 'e': marked as not usable; found '-1'.",
            "Remove the value from `exclude_values` to use it.",
        ],
    ]


def test_a_value_of_drop_that_no_cell_holds_is_a_typing_error(tmp_path):
    (tmp_path / "f.tsv").write_text("patient_id\tt\te\tcause\nA\t3\t1\tnot tumor specific\n")
    with pytest.raises(InputError) as error:
        read_followup(tmp_path / "f.tsv", time="t", event="e", drop={"column": "cause", "values": ["not tumour specific"]})
    assert str(error.value).replace(f"{tmp_path}/", "") == (
        "f.tsv, column 'cause': no cell holds this value of `drop`; found 'not tumour specific', expected a value of the column. "
        "Did you mean 'not tumor specific'?"
    )


def test_a_label_is_an_event_at_one_time_for_all(tmp_path):
    followup = read_binary(tmp_path, "P2 1 0 0\nP1 2 0 1\nP3 3 0 -1\nP4 4 0 \n", label="label", exclude_values=["-1"])
    assert followup.patients.to_dict("list") == {"patient_id": ["P1", "P2"], "time": [1.0, 1.0], "event": [1, 0]}
    assert followup.excluded["id"].tolist() == ["P3", "P4"]
    assert followup.by_definition == {"P3"}
    assert followup.flow["reason"].tolist() == ["", "label: -1", "label missing"]
    stated = read_binary(tmp_path, "P1 2 0 1\n", label="label", within=3, unit="years")
    assert stated.patients["time"].tolist() == [36.0]


def test_a_label_follows_from_the_follow_up_and_the_window(tmp_path):
    rows = "A 10 1 0\nB 11 1 0\nC 9 1 0\nD 10 0 0\nE 9 0 0\nF 30 0 0\nG 0 0 0\n"
    followup = read_binary(tmp_path, rows, time="os", event="dead", within=10, unit="months")
    assert followup.patients.set_index("patient_id")["event"].to_dict() == {"A": 1, "B": 0, "C": 1, "D": 0, "F": 0}
    assert set(followup.patients["time"]) == {10.0}
    assert followup.by_definition == {"E", "G"}
    assert followup.flow.iloc[-1].tolist() == ["followed through the window", 5, 2, "censored before 10 months"]
    assert followup.excluded["reason"].str.replace(f"{tmp_path}/", "").iloc[0] == (
        "f.tsv, column 'os': censored within the window; found '9', expected 10 months or more without an event."
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 1)), min_size=1, max_size=30), st.integers(1, 30))
def test_the_window_loses_nobody(tmp_path_factory, people, window):
    rows = "".join(f"P{i} {time} {event} 0\n" for i, (time, event) in enumerate([*people, (window, 1)]))
    followup = read_binary(tmp_path_factory.mktemp("f"), rows, time="os", event="dead", within=window)
    known = followup.patients.set_index("patient_id")["event"]
    assert sorted([*known.index, *followup.excluded["id"]]) == sorted(f"P{i}" for i in range(len(people) + 1))
    for i, (time, event) in enumerate(people):
        truth = 1 if event and time <= window else 0 if time >= window else None
        assert known.get(f"P{i}") == truth


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"kind": "survival", "time": "os"},
            "f.tsv: an endpoint of kind survival cannot be described so; found 'time', expected `time` and `event`.",
        ),
        (
            {"kind": "binary", "time": "os", "event": "dead"},
            "f.tsv: an endpoint of kind binary cannot be described so; found 'time, event', expected either `label` (perhaps with "
            "`within`), or `time`, `event` and `within`.",
        ),
        (
            {"kind": "binary", "label": "dead", "within": 0},
            "f.tsv: the window is not positive; found '0', expected `within` above 0.",
        ),
        (
            {"time": "os", "event": "dead", "event_values": ["1"]},
            "f.tsv: one list of texts lacks the other; found 'event_values', expected both or none. State which texts mean an event and "
            "which mean none; a text in neither list is an error, not a guess.",
        ),
        (
            {"time": "os", "event": "dead", "event_values": ["1"], "censored_values": [0, 1]},
            "f.tsv: a text means event and censored at once; found '1', expected each text in one list.",
        ),
        (
            {"kind": "binary", "label": "dead", "exclude_values": ["1"]},
            "f.tsv: no patient has a usable endpoint; found '1 left out: dead: 1', expected 'dead' filled in.",
        ),
    ],
)
def test_endpoints_that_contradict_themselves_are_refused(tmp_path, options, expected):
    (tmp_path / "f.tsv").write_text("patient_id\tos\tdead\nP1\t1\t1\n")
    with pytest.raises(InputError) as error:
        read_followup(tmp_path / "f.tsv", **options)
    assert str(error.value).replace(f"{tmp_path}/", "") == expected


@pytest.mark.realdata
@pytest.mark.parametrize("years", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("all_causes", [False, True])
def test_the_labels_of_hancock_follow_from_status_and_days(realdata, years, all_causes):
    labels = realdata / "hancock/labels.tsv"
    column = f"y_{years}y" + "_os" * all_causes
    listed = read_followup(labels, kind="binary", label=column, exclude_values=["-1"], within=years, unit="years")
    dead = ["deceased", "deceased tumor specific"]
    other = ["deceased not tumor specific"]
    rebuilt = read_followup(
        labels,
        kind="binary",
        time="days_to_last_information",
        event="survival_status_with_cause",
        within=365 * years,
        unit="days",
        event_values=dead + other * all_causes,
        censored_values=["living"],
        drop=None if all_causes else {"column": "survival_status_with_cause", "values": other},
    )
    assert rebuilt.patients[["patient_id", "event"]].equals(listed.patients[["patient_id", "event"]])
    assert set(rebuilt.excluded["id"]) == set(listed.excluded["id"])


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("column", "patients", "positive"),
    [("y_3y", 461, 96), ("y_4y", 396, 103), ("y_5y", 327, 114), ("y_3y_os", 550, 139), ("y_status", 674, 124)],
)
def test_the_labels_of_hancock_have_the_published_counts(realdata, column, patients, positive):
    found = read_followup(realdata / "hancock/labels.tsv", kind="binary", label=column, exclude_values=["-1"]).patients
    assert (len(found), found["event"].sum()) == (patients, positive)


@pytest.mark.realdata
def test_words_and_numbers_of_hancock_give_one_endpoint(realdata):
    common = {"file": realdata / "hancock/labels.tsv", "time": "days_to_last_information", "unit": "days"}
    words = read_followup(event="survival_status", event_values=["deceased"], censored_values=["living"], **common)
    pd.testing.assert_frame_equal(words.patients, read_followup(event="os_event", **common).patients)
