import pandas as pd
import pytest

from pipeline import tables
from pipeline.cohort.splits import build_splits, check_splits, fold_patients, read_splits, splits_digest
from pipeline.errors import InputError

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
    message = r"splits\.tsv, column 'fold': no such fold; found '2', expected 0 or 1\. The study has another number of folds .*: delete it"
    with pytest.raises(InputError, match=message):
        fold_patients(back, 2)


def test_an_unknown_method_and_a_damaged_table_are_refused(tmp_path):
    tables.write_table(COHORT, tmp_path / "patients.tsv")
    with pytest.raises(InputError, match="unknown method of splitting; found 'loo', expected kfold or site or monte_carlo or imported"):
        build_splits(tmp_path / "patients.tsv", {"method": "loo"}, tmp_path / "s.tsv")
    (tmp_path / "s.tsv").write_text("fold\tpatient_id\tset\n0\tA\ttrain\n0\tB\tvalidation\n")
    with pytest.raises(InputError, match=r"row 3, column 'set': .* found 'validation', expected test or train"):
        read_splits(tmp_path / "s.tsv")


def test_a_binary_label_needs_both_outcomes_in_both_sets():
    labels = COHORT.assign(time=36.0)
    check_splits(splits_of("AC|BD", "BD|AC"), labels)
    with pytest.raises(InputError) as error:
        check_splits(splits_of("ACD|B", "B|ACD"), labels)
    assert str(error.value) == (
        "fold 0 has no patient without event in its test set; found '1 patients, all with an event', expected at least one patient without "
        "event. Use fewer folds, another endpoint, or other lists."
    )
    check_splits(splits_of("AC|BD", "BD|AC").replace({"D": "B2"}), COHORT.replace({"D": "B2"}).assign(event=1))  # survival: all may die


def test_a_patient_may_be_tested_in_several_folds():
    check_splits(splits_of("AC|BD", "BD|AC", "AD|BC", "BC|AD"), COHORT)


def test_a_site_on_both_sides_is_found():
    ids = {"A": "X-1", "B": "Y-1", "C": "X-2", "D": "Y-2"}
    patients = COHORT.assign(patient_id=COHORT["patient_id"].map(ids))
    good, bad = (
        splits.assign(patient_id=splits["patient_id"].map(ids)) for splits in (splits_of("AC|BD", "BD|AC"), splits_of("AD|BC", "BC|AD"))
    )
    check_splits(good, patients, site=r"^(\w)-")
    with pytest.raises(InputError) as error:
        check_splits(bad, patients, file="s.tsv", site=r"^(\w)-")
    assert str(error.value) == "s.tsv: site is in training and in test of fold 0; found 'X', expected each site on one side."


TCGA = pd.DataFrame(
    {"patient_id": [f"TCGA-{site}-{i:04d}" for site in ("2F", "4Z", "AB", "K4", "ZF", "XF") for i in range(8)], "time": range(48)}
).assign(event=lambda t: (t["time"] % 3 == 0).astype(int))


@pytest.mark.parametrize(
    ("scheme", "folds"),
    [
        ({"method": "kfold", "folds": 4, "repeats": 3}, 12),
        ({"method": "site", "folds": 3, "repeats": 2, "site": "^TCGA-([A-Z0-9]{2})"}, 6),
        ({"method": "monte_carlo", "folds": 3, "test_share": 0.2}, 3),  # most are never tested, which a draw may do
    ],
)
def test_every_method_is_built_from_the_table_of_patients(tmp_path, scheme, folds):
    written = []
    for order in (TCGA, TCGA.sample(frac=1, random_state=1)):
        tables.write_table(order, tmp_path / "patients.tsv")
        splits = build_splits(tmp_path / "patients.tsv", scheme, tmp_path / "splits.tsv", seed=7)
        written.append((tmp_path / "splits.tsv").read_bytes())
    assert sorted(splits["fold"].unique()) == list(range(folds))
    assert written[0] == written[1]
