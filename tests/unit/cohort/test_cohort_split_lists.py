from pathlib import Path

import pandas as pd
import pytest

from pipeline import tables
from pipeline.cohort.split_lists import imported_splits
from pipeline.cohort.splits import build_splits, check_splits, fold_patients
from pipeline.errors import InputError


def written(folder: Path, lists: dict[str, str]) -> str:
    """Split lists from {fold: "P1 train, P2 test, …"}; returns their pattern."""
    for fold, text in lists.items():
        rows = [row.split() for row in text.split(",")]
        (folder / f"s_{fold}.tsv").write_text("patient_id\tset\n" + "".join("\t".join([*row, ""][:2]) + "\n" for row in rows))
    return str(folder / "s_{fold}.tsv")


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
    by_column, _ = imported_splits(["P1", "P2"], pattern, 2, first=1, column="split_{fold:02d}")
    by_number, _ = imported_splits(["P1", "P2"], pattern, 2, first=1, column="fold", train=None, test="{fold}")
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
            "least one list. Check that the lists use the cohort's patient ids, restrict the cohort by `include`, or let the workflow make "
            "the splits (`scheme: kfold`).",
        ),
        (
            {"0": "P1 train, P2 test"},
            {"column": "set_{k}"},
            "contains a placeholder other than {fold}; found 'set_{k}', expected {fold} or {fold:02d}, and no other braces.",
        ),
        ({}, {}, "s_0.tsv: no such table; expected a TSV file. Check the path and `data_dir`."),
    ],
)
def test_unusable_lists_are_named(tmp_path, lists, options, message):
    written(tmp_path, lists)
    with pytest.raises(InputError) as error:
        imported_splits(["P1", "P2"], str(tmp_path / "s_{fold}.tsv"), 1, **options)
    assert str(error.value).replace(f"{tmp_path}/", "") == message


@pytest.mark.realdata
def test_the_five_folds_of_blca(realdata, tmp_path):
    folder = f"{realdata}/tcga_mcat/blca"
    scheme = {"method": "imported", "pattern": f"{folder}/splits_{{fold}}.tsv", "folds": 5, "column": "split", "test": "val"}
    tables.write_table(pd.read_csv(f"{folder}/clinical.tsv", sep="\t").rename(columns={"os_months": "time"}), tmp_path / "p.tsv")
    splits = build_splits(tmp_path / "p.tsv", scheme, tmp_path / "s.tsv")
    assert splits[splits["set"] == "test"].groupby("fold").size().tolist() == [75, 75, 75, 74, 74]
    with pytest.raises(InputError, match="lacks the column 'set'"):
        build_splits(tmp_path / "p.tsv", {**scheme, "column": "set"}, tmp_path / "s.tsv")


@pytest.mark.realdata
@pytest.mark.parametrize(("cohort", "events"), [("blca", [25, 24, 23, 25, 16]), ("coadread", [5, 13, 5, 9, 5])])
def test_the_events_in_the_site_preserving_test_folds(realdata, cohort, events):
    folder = f"{realdata}/tcga_survpath/{cohort}"
    patients = pd.read_csv(f"{folder}/clinical.tsv", sep="\t").rename(columns={"dss_event": "event", "dss_months": "time"})
    splits, _ = imported_splits(patients["patient_id"], f"{folder}/splits_{{fold}}.tsv", 5)
    check_splits(splits, patients, site="^TCGA-([A-Z0-9]{2})")
    joined = splits.merge(patients)
    assert joined[joined["set"] == "test"].groupby("fold")["event"].sum().tolist() == events


def prepared(realdata, tmp_path, name: str) -> tuple[str, pd.DataFrame]:
    """The table of a vector cohort, and its patients.tsv."""
    table = f"{realdata}/{name}"
    patients = pd.read_csv(table, sep="\t").rename(columns={"time_months": "time"})[["patient_id", "time", "event"]]
    tables.write_table(patients, tmp_path / "p.tsv")
    return table, patients


@pytest.mark.realdata
def test_the_numbered_folds_of_the_breast_vectors(realdata, tmp_path):
    table, patients = prepared(realdata, tmp_path, "gpdbn_brca/brca1015.tsv")
    scheme = {"method": "imported", "pattern": table, "folds": 5, "first": 1, "column": "fold", "train": None, "test": "{fold}"}
    splits = build_splits(tmp_path / "p.tsv", scheme, tmp_path / "s.tsv")
    test = splits[splits["set"] == "test"].merge(patients)
    assert test.groupby("fold")["event"].agg(["size", "sum"]).to_numpy().T.tolist() == [[204, 203, 203, 203, 202], [30, 29, 29, 29, 29]]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "column", "tested"),
    [
        ("pathomic_gbmlgg/patients.tsv", "mc15_split_{fold:02d}", 153),
        ("pathomic_kirc/patients.tsv", "pf_split_{fold:02d}", 84),
    ],
)
def test_the_fifteen_published_draws_of_the_glioma_and_kidney_cohorts(realdata, tmp_path, name, column, tested):
    table, _ = prepared(realdata, tmp_path, name)
    scheme = {"method": "imported", "pattern": table, "folds": 15, "first": 1, "column": column, "allow_untested": True}
    splits = build_splits(tmp_path / "p.tsv", scheme, tmp_path / "s.tsv")
    assert splits[splits["set"] == "test"].groupby("fold").size().tolist() == [tested] * 15
