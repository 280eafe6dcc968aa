import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.cohort.splits import build_splits, check_splits, fold_patients, imported_splits, kfold_splits, read_splits, splits_digest
from pipeline.errors import InputError

REAL = os.environ.get("SLIDE2SURV_REALDATA")
PATIENTS = pd.DataFrame(
    {"patient_id": [f"P{i:02d}" for i in range(23)], "time": range(23), "event": [i % 3 == 0 for i in range(23)]}
).astype({"event": int})


def written(folder: Path, lists: dict[str, str]) -> str:
    """Split lists from {fold: "P1 train, P2 test, …"}; returns their pattern."""
    for fold, text in lists.items():
        rows = [row.split() for row in text.split(",")]
        (folder / f"s_{fold}.tsv").write_text("patient_id\tset\n" + "".join("\t".join([*row, ""][:2]) + "\n" for row in rows))
    return str(folder / "s_{fold}.tsv")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.booleans()), min_size=12, max_size=60),
    st.integers(2, 5),
    st.integers(0, 99),
    st.randoms(use_true_random=False),
)
def test_folds_are_balanced_cover_everyone_once_and_ignore_the_order_of_rows(rows, folds, seed, random):
    patients = pd.DataFrame(
        {"patient_id": [f"P{i}" for i in range(len(rows))], "time": [t for t, _ in rows], "event": [int(e) for _, e in rows]}
    )
    patients.loc[: folds - 1, "event"] = 1
    splits = kfold_splits(patients, folds, seed)
    test = splits[splits["set"] == "test"].merge(patients)
    assert sorted(test["patient_id"]) == sorted(patients["patient_id"])
    for counts in (test.groupby("fold").size(), test.groupby("fold")["event"].sum()):
        assert len(counts) == folds
        assert counts.max() - counts.min() <= 1
    order = list(patients.index)
    random.shuffle(order)
    assert kfold_splits(patients.loc[order], folds, seed).equals(splits)


def test_folds_cover_the_same_range_of_times():
    patients = pd.DataFrame({"patient_id": [f"P{i:03d}" for i in range(200)], "time": range(200), "event": 1})
    splits = kfold_splits(patients, 5)
    medians = splits[splits["set"] == "test"].merge(patients).groupby("fold")["time"].median()
    assert medians.max() - medians.min() <= 5


def test_another_seed_gives_other_folds_and_the_same_seed_the_same():
    assert splits_digest(kfold_splits(PATIENTS, 5, 1)) == splits_digest(kfold_splits(PATIENTS, 5, 1))
    assert splits_digest(kfold_splits(PATIENTS, 5, 1)) != splits_digest(kfold_splits(PATIENTS, 5, 2))


@pytest.mark.parametrize(
    ("patients", "folds", "message"),
    [
        (PATIENTS, 1, "cannot make the folds; found '1 folds, 23 patients', expected 2 folds or more, a patient in each."),
        (PATIENTS[:3], 4, "cannot make the folds; found '4 folds, 3 patients', expected 2 folds or more, a patient in each."),
        (
            PATIENTS,
            9,
            "a fold would have no event to test on; found '9 folds, 8 events', expected at least one event a fold. "
            "Use fewer folds or another endpoint.",
        ),
    ],
)
def test_folds_that_cannot_be_made_are_refused(patients, folds, message):
    with pytest.raises(InputError) as error:
        kfold_splits(patients, folds)
    assert str(error.value) == message


def test_lists_are_joined_by_id_and_strangers_reported(tmp_path, caplog):
    pattern = written(tmp_path, {"0": "P2 val, P1 train, X train", "1": "P1 val, P2 train, P3"})
    splits, absent = imported_splits(["P1", "P2"], pattern, 2, train="train", test="val")
    assert absent == ["X"]
    assert "1 listed patients are not in the cohort: X" in caplog.text
    assert splits.to_numpy().tolist() == [[0, "P1", "train"], [0, "P2", "test"], [1, "P1", "test"], [1, "P2", "train"]]
    assert fold_patients(splits, 0) == (["P1"], ["P2"])


def test_lists_in_one_table_by_column_or_by_fold_number(tmp_path):
    (tmp_path / "t.tsv").write_text("patient_id\tsplit_01\tsplit_02\tfold\nP1\ttest\ttrain\t1\nP2\ttrain\ttest\t2\n")
    pattern = str(tmp_path / "t.tsv")
    by_column, _ = imported_splits(["P1", "P2"], pattern, [1, 2], column="split_{fold:02d}")
    by_number, _ = imported_splits(["P1", "P2"], pattern, [1, 2], column="fold", train=None, test="{fold}")
    assert by_column.equals(by_number)
    assert fold_patients(by_column, 1) == (["P1"], ["P2"])


@pytest.mark.parametrize(
    ("lists", "options", "message"),
    [
        (
            {"0": "P1 train, P2 test"},
            {"column": "split"},
            "s_0.tsv: lacks the column 'split'; found 'patient_id, set', expected 'split'. Did you mean 'set'?",
        ),
        (
            {"0": "P1 train, P2 val"},
            {},
            "s_0.tsv, row 3, column 'set': value names neither the training nor the test set; found 'val', expected test or train. "
            "Set `train` and `test` to the values of the column (lists are allowed), or empty the cell.",
        ),
        (
            {"0": "P1 train, X test"},
            {},
            "s_{fold}.tsv: no split list mentions 1 of the cohort's 2 patients; found 'P2', expected every patient of the cohort in at "
            "least one list. Check that the lists use the cohort's patient ids, or let the workflow make the splits (`method: kfold`).",
        ),
        ({}, {}, "s_0.tsv: no such table; expected a TSV file. Check the path and `data_dir`."),
    ],
)
def test_unusable_lists_are_named(tmp_path, lists, options, message):
    written(tmp_path, lists)
    with pytest.raises(InputError) as error:
        imported_splits(["P1", "P2"], str(tmp_path / "s_{fold}.tsv"), 1, **options)
    assert str(error.value).replace(f"{tmp_path}/", "") == message


COHORT = pd.DataFrame({"patient_id": ["A", "B", "C", "D"], "time": [1, 2, 3, 4], "event": [1, 1, 0, 0]})


def splits_of(*folds: str) -> pd.DataFrame:
    """Splits from one string a fold, e.g. ``"AC|BD"`` = train A and C, test B and D."""
    rows = [
        (k, patient, name)
        for k, text in enumerate(folds)
        for name, members in zip(("train", "test"), text.split("|"), strict=True)
        for patient in members
    ]
    return pd.DataFrame(rows, columns=["fold", "patient_id", "set"])


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (("AC|BCD",), "s.tsv: patient is in training and in test of fold 0; found 'C', expected train and test without a common patient."),
        (("AC|BD", "BBD|AC"), "s.tsv: patient is listed twice in fold 1; found 'B', expected train and test without a common patient."),
        (
            ("AC|BD", "ABD|C"),
            "s.tsv: fold 1 has no event in its test set; found '1 patients, 0 events', expected at least one event. "
            "Use fewer folds, another endpoint, or other lists.",
        ),
        (
            ("C|ABD",),
            "s.tsv: fold 0 has no event in its training set; found '1 patients, 0 events', expected at least one event. "
            "Use fewer folds, another endpoint, or other lists.",
        ),
        (
            ("AC|BD",),
            "s.tsv: 2 patients are tested in no fold; found 'A, C', expected every patient tested. "
            "Give all folds of the lists, or set `allow_untested: true` for a hold-out split.",
        ),
    ],
)
def test_dishonest_splits_are_refused(folds, message):
    with pytest.raises(InputError) as error:
        check_splits(splits_of(*folds), COHORT, file="s.tsv")
    assert str(error.value) == message


def test_a_hold_out_split_is_accepted_when_asked():
    check_splits(splits_of("AC|BD"), COHORT, allow_untested=True)


def test_splits_are_written_and_read_back_with_one_digest(tmp_path):
    tables.write_table(COHORT, tmp_path / "patients.tsv")
    made = build_splits(tmp_path / "patients.tsv", {"method": "kfold", "folds": 2}, tmp_path / "splits.tsv", seed=3)
    back = read_splits(tmp_path / "splits.tsv")
    assert back.equals(made)
    assert splits_digest(back.sample(frac=1, random_state=0)) == splits_digest(made)
    with pytest.raises(InputError, match="no such fold; found '2', expected 0 or 1"):
        fold_patients(back, 2)


def test_an_unknown_method_and_a_damaged_table_are_refused(tmp_path):
    tables.write_table(COHORT, tmp_path / "patients.tsv")
    with pytest.raises(InputError, match="unknown method of splitting; found 'loo', expected kfold or imported"):
        build_splits(tmp_path / "patients.tsv", {"method": "loo"}, tmp_path / "s.tsv")
    (tmp_path / "s.tsv").write_text("fold\tpatient_id\tset\n0\tA\ttrain\n0\tB\tvalidation\n")
    with pytest.raises(InputError, match=r"row 3, column 'set': .* found 'validation', expected test or train"):
        read_splits(tmp_path / "s.tsv")


@pytest.mark.realdata
@pytest.mark.skipif(not REAL or not Path(REAL).is_dir(), reason="SLIDE2SURV_REALDATA does not name the folder of real data")
class TestPublishedLists:
    def test_the_five_folds_of_blca(self, tmp_path):
        folder = f"{REAL}/tcga_mcat/blca"
        scheme = {"method": "imported", "pattern": f"{folder}/splits_{{fold}}.tsv", "folds": 5, "column": "split", "test": "val"}
        tables.write_table(pd.read_csv(f"{folder}/clinical.tsv", sep="\t").rename(columns={"os_months": "time"}), tmp_path / "p.tsv")
        splits = build_splits(tmp_path / "p.tsv", scheme, tmp_path / "s.tsv")
        assert splits[splits["set"] == "test"].groupby("fold").size().tolist() == [75, 75, 75, 74, 74]
        with pytest.raises(InputError, match="lacks the column 'set'"):
            build_splits(tmp_path / "p.tsv", {**scheme, "column": "set"}, tmp_path / "s.tsv")

    @pytest.mark.parametrize(("cohort", "events"), [("blca", [25, 24, 23, 25, 16]), ("coadread", [5, 13, 5, 9, 5])])
    def test_the_events_in_the_site_preserving_test_folds(self, cohort, events):
        patients = pd.read_csv(f"{REAL}/tcga_survpath/{cohort}/clinical.tsv", sep="\t").rename(columns={"dss_event": "event"})
        splits, _ = imported_splits(patients["patient_id"], f"{REAL}/tcga_survpath/{cohort}/splits_{{fold}}.tsv", 5)
        check_splits(splits, patients)
        joined = splits.merge(patients)
        assert joined[joined["set"] == "test"].groupby("fold")["event"].sum().tolist() == events
        for _, fold in joined.groupby("fold"):
            assert not set(fold.loc[fold["set"] == "train", "site"]) & set(fold.loc[fold["set"] == "test", "site"])
