from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohort.dealing import kfold_splits, monte_carlo_splits, site_splits, sites_of
from pipeline.cohort.splits import check_splits, splits_digest
from pipeline.errors import InputError

PATIENTS = pd.DataFrame(
    {"patient_id": [f"P{i:02d}" for i in range(23)], "time": range(23), "event": [i % 3 == 0 for i in range(23)]}
).astype({"event": int})


def in_test(splits: pd.DataFrame, patients: pd.DataFrame) -> pd.DataFrame:
    """Patients (size) and events (sum) of each test fold."""
    return splits[splits["set"] == "test"].merge(patients).groupby("fold")["event"].agg(["size", "sum"])


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


def test_each_round_deals_everyone_anew_and_the_first_rounds_stay_when_more_follow():
    splits = kfold_splits(PATIENTS, 4, repeats=3, seed=1)
    rounds = [splits[splits["fold"] // 4 == r].assign(fold=lambda t: t["fold"] % 4) for r in range(3)]
    assert rounds[0].reset_index(drop=True).equals(kfold_splits(PATIENTS, 4, seed=1))
    assert len({splits_digest(part) for part in rounds}) == 3
    for part in rounds:
        assert sorted(part.loc[part["set"] == "test", "patient_id"]) == sorted(PATIENTS["patient_id"])
    two = kfold_splits(PATIENTS, 4, repeats=2, seed=1)
    assert splits[splits["fold"] < 8].reset_index(drop=True).equals(two)


def test_ten_folds_of_a_binary_label_have_both_outcomes_alike():
    labels = pd.DataFrame({"patient_id": [f"{i:03d}" for i in range(430)], "time": 36.0, "event": [int(i < 84) for i in range(430)]})
    splits = kfold_splits(labels, 10, repeats=2)
    check_splits(splits, labels)
    counts = in_test(splits, labels)
    assert set(counts["size"]) == {43}
    assert set(counts["sum"]) == {8, 9}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.booleans()), min_size=10, max_size=60),
    st.floats(0.1, 0.5),
    st.integers(0, 99),
    st.randoms(use_true_random=False),
)
def test_draws_have_their_share_of_patients_and_events_whatever_the_order_of_rows(rows, share, seed, random):
    patients = pd.DataFrame(
        {"patient_id": [f"P{i}" for i in range(len(rows))], "time": [t for t, _ in rows], "event": [int(e) for _, e in rows]}
    )
    patients.loc[:3, "event"] = 1
    splits = monte_carlo_splits(patients, 3, seed, test_share=share)
    assert not splits.duplicated(["fold", "patient_id"]).any()
    assert len(splits) == 3 * len(patients)
    counts, events = in_test(splits, patients), int(patients["event"].sum())
    assert set(counts["sum"]) == {max(1, round(share * events))}
    assert ((counts["size"] - share * len(patients)).abs() <= 1.5).all()
    order = list(patients.index)
    random.shuffle(order)
    assert monte_carlo_splits(patients.loc[order], 3, seed, test_share=share).equals(splits)


def test_every_patient_is_as_likely_to_be_drawn_as_any_other():
    splits = monte_carlo_splits(PATIENTS, 2000, test_share=0.3)
    drawn = splits[splits["set"] == "test"]["patient_id"].value_counts().reindex(PATIENTS["patient_id"], fill_value=0) / 2000
    expected = np.where(PATIENTS["event"] == 1, 2 / 8, 4 / 15)  # 30 % of 8 and of 15, rounded
    assert np.abs(drawn.to_numpy() - expected).max() < 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_a_draw_covers_the_range_of_times():
    patients = pd.DataFrame({"patient_id": [f"P{i:03d}" for i in range(200)], "time": range(200), "event": 1})
    splits = monte_carlo_splits(patients, 10, test_share=0.2)
    times = splits[splits["set"] == "test"].merge(patients).groupby("fold")["time"].apply(lambda t: np.diff(np.sort(t)).max())
    assert times.max() <= 9


def test_more_draws_leave_the_first_as_they_are():
    few, many = (monte_carlo_splits(PATIENTS, folds, 5) for folds in (3, 6))
    assert many[many["fold"] < 3].reset_index(drop=True).equals(few)


@pytest.mark.parametrize(("folds", "share"), [(0, 0.2), (3, 0.0), (3, 1.0)])
def test_impossible_draws_are_refused(folds, share):
    with pytest.raises(InputError) as error:
        monte_carlo_splits(PATIENTS, folds, test_share=share)
    assert str(error.value) == (
        f"cannot draw the test sets; found '{folds} draws, test_share {share}', expected 1 draw or more, a share between 0 and 1."
    )


def cohort_of(sites: list[tuple[int, int]]) -> pd.DataFrame:
    """Patients of sites given as (patients, events)."""
    rows = [
        (f"TCGA-{s:02d}-{i:04d}", float(10 * s + i), int(i < min(size, events)))
        for s, (size, events) in enumerate(sites)
        for i in range(size)
    ]
    return pd.DataFrame(rows, columns=["patient_id", "time", "event"])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=6, max_size=14),
    st.integers(2, 3),
    st.integers(0, 9),
    st.randoms(use_true_random=False),
)
def test_no_site_is_on_both_sides_everyone_is_tested_once_and_the_order_of_rows_is_nothing(sites, folds, seed, random):
    patients = cohort_of(sites)
    splits = site_splits(patients, folds, seed=seed)
    check_splits(splits, patients, site="^TCGA-(..)")
    assert sorted(splits.loc[splits["set"] == "test", "patient_id"]) == sorted(patients["patient_id"])
    order = list(patients.index)
    random.shuffle(order)
    assert site_splits(patients.loc[order], folds, seed=seed).equals(splits)


def unevenness(counts: np.ndarray) -> float:
    """Sum over folds [k, 2] of the squared shares of patients and events."""
    return float(((counts / counts.sum(axis=0)) ** 2).sum())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 8)), min_size=4, max_size=8), st.integers(0, 3))
def test_the_folds_are_hardly_less_even_than_the_best_of_all_deals(sites, seed):
    patients = cohort_of([(20, 5), (4, 3), *sites])
    sizes = patients.groupby(patients["patient_id"].str[5:7])["event"].agg(["size", "sum"]).to_numpy(float)
    deals = np.array(list(product(range(2), repeat=len(sizes) - 1)))
    deals = np.hstack([np.zeros((len(deals), 1), int), deals])
    deals = deals[deals.any(axis=1)]
    best = min(unevenness(np.stack([sizes[deal == k].sum(axis=0) for k in range(2)])) for deal in deals)
    made = unevenness(in_test(site_splits(patients, 2, seed=seed), patients).to_numpy(float))
    assert best - 1e-9 <= made <= best + 0.05


def test_rounds_of_sites_differ_and_a_seed_gives_the_same_again():
    patients = cohort_of([(3, 1)] * 12)
    splits = site_splits(patients, 4, repeats=3, seed=2)
    deals = [splits[splits["fold"] // 4 == r].assign(fold=lambda t: t["fold"] % 4) for r in range(3)]
    assert len({splits_digest(deal) for deal in deals}) == 3
    assert site_splits(patients, 4, repeats=3, seed=2).equals(splits)
    assert in_test(splits, patients).to_numpy().tolist() == [[9, 3]] * 12


@pytest.mark.parametrize(
    ("sites", "folds", "message"),
    [
        (
            [(5, 3), (5, 3)],
            3,
            "there are fewer sites than folds; found '2 sites', expected 3 or more. Use fewer folds, or another expression under `site`.",
        ),
        (
            [(5, 4), (5, 0), (5, 0)],
            2,
            "a fold would have no event to test on; found '1 sites with an event, 2 folds', expected an event in each. Use fewer folds.",
        ),
    ],
)
def test_sites_that_cannot_be_dealt_are_refused(sites, folds, message):
    with pytest.raises(InputError) as error:
        site_splits(cohort_of(sites), folds)
    assert str(error.value) == message


def test_a_site_is_the_second_field_of_a_barcode_or_what_the_expression_says():
    assert sites_of(["TCGA-2F-A9KP", "TCGA-ZF-A9R0"]) == ["2F", "ZF"]
    assert sites_of(["erlangen_001", "bern_7"], r"^([a-z]+)_") == ["erlangen", "bern"]


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (
            "^TCGA-(..)",
            "patient id does not tell a site; found '001', expected an id in which ^TCGA-(..) is found. "
            "Set `site` to an expression whose first group is the site, or split by `kfold`.",
        ),
        ("^...", "`site` has no group; found '^...', expected parentheses around the part of the patient id that is the site."),
        ("(", "`site` is not a regular expression (missing ), unterminated subpattern at position 0); found '('."),
    ],
)
def test_an_unusable_site_is_explained(site, message):
    with pytest.raises(InputError) as error:
        sites_of(["001"], site)
    assert str(error.value) == message


@pytest.mark.realdata
@pytest.mark.parametrize(("cohort", "sites"), [("blca", 33), ("coadread", 36), ("luad", 33)])
def test_sites_of_real_cohorts_make_even_folds(realdata, cohort, sites):
    patients = pd.read_csv(f"{realdata}/tcga_mcat/{cohort}/clinical.tsv", sep="\t", dtype={"site": str}).rename(
        columns={"os_months": "time"}
    )
    assert sites_of(patients["patient_id"]) == patients["site"].tolist()
    assert patients["site"].nunique() == sites
    counts = in_test(site_splits(patients, 5), patients)
    assert (counts.max() / counts.min() < 1.2).all()
