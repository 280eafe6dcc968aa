import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_study import Study

from pipeline.evaluation.comparison import (
    PAIR_COLUMNS,
    RANK_COLUMNS,
    bootstrap_p,
    compare_models,
    corrected_t,
    critical_difference,
    friedman_p,
    holm,
)
from pipeline.evaluation.concordance import harrell
from pipeline.tables import read_table, write_table


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path, folds=5)


def compare(study: Study, *models: str, bootstrap: int = 200, seed: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    outputs = {"output": study.root / "comparison.tsv", "ranks": study.root / "ranks.tsv"}
    folders = {model: study.folders(model) for model in models}
    tables = {"patients": study.patients, "splits": study.splits}
    compare_models(cohort="demo", folders=folders, bootstrap=bootstrap, seed=seed, **tables, **outputs)
    return tuple(pd.read_csv(path, sep="\t", keep_default_na=True) for path in outputs.values())


def c_by_fold(study: Study, model: str, without: tuple[str, ...] = ()) -> np.ndarray:
    values = []
    for folder in study.folders(model):
        table = pd.read_csv(folder / "predictions.tsv", sep="\t")
        table = table[~table.patient_id.isin(without)]
        values.append(harrell(table.time, table.event, table.risk).value)
    return np.array(values)


def test_a_pair_holds_the_mean_difference_its_interval_and_the_corrected_t(study: Study):
    study.add_model("good", signal=2.0)
    study.add_model("poor", signal=0.2, seed=2)
    pairs, ranks = compare(study, "good", "poor")
    assert list(pairs.columns) == list(PAIR_COLUMNS)
    row, d = pairs.iloc[0], c_by_fold(study, "good") - c_by_fold(study, "poor")
    assert (row.model_a, row.model_b, row.folds, row.patients) == ("good", "poor", 5, 150)
    assert row.difference == pytest.approx(d.mean())
    assert 0 < row.ci_low < row.difference < row.ci_high
    assert 0 < row.p_bootstrap < 0.05
    t = d.mean() / np.sqrt((1 / 5 + 30 / 120) * d.var(ddof=1))
    assert (row.t, row.p_t, row.p_holm) == pytest.approx((t, *[2 * stats.t.sf(t, 4)] * 2))
    assert pd.isna(row.note)
    assert ranks.model.tolist() == ["good", "poor"]
    assert list(ranks.columns) == list(RANK_COLUMNS)
    assert (ranks.folds == 5).all()


def test_one_order_or_the_other_only_turns_the_sign(study: Study):
    for k, name in enumerate("ab"):
        study.add_model(name, seed=k)
    one, two = compare(study, "a", "b")[0].iloc[0], compare(study, "b", "a")[0].iloc[0]
    assert (one.difference, one.ci_low, one.t) == pytest.approx((-two.difference, -two.ci_high, -two.t))
    assert (one.p_bootstrap, one.p_t) == pytest.approx((two.p_bootstrap, two.p_t))


def test_a_model_against_itself_does_not_differ(study: Study):
    for name in "ab":
        study.add_model(name, seed=1)
    pairs, ranks = compare(study, "a", "b")
    row = pairs.iloc[0]
    assert (row.difference, row.ci_low, row.ci_high, row.p_bootstrap, row.t, row.p_t) == (0, 0, 0, 1, 0, 1)
    assert ranks.mean_rank.tolist() == [1.5, 1.5]
    assert ranks.friedman_p.isna().all()


def test_models_are_compared_on_the_patients_of_both_and_it_is_said(study: Study):
    lost = ("P000", "P001", "P002", "P010")
    study.add_model("all")
    study.add_model("some", seed=2, drop=lost)
    row = compare(study, "all", "some")[0].iloc[0]
    assert row.patients == 146
    assert row.difference == pytest.approx((c_by_fold(study, "all", lost) - c_by_fold(study, "some")).mean())
    assert row.note == "on the 146 patients of both (all predicts 150, some 146)"


def test_what_a_pair_says_does_not_depend_on_who_else_takes_part(study: Study):
    study.add_model("a")
    study.add_model("b", seed=2)
    study.add_model("c", seed=3, drop=("P000",))
    alone = compare(study, "a", "c")[0].drop(columns="p_holm")
    together = compare(study, "a", "b", "c")[0].drop(columns="p_holm")
    pd.testing.assert_frame_equal(together[together.model_b.eq("c") & together.model_a.eq("a")].reset_index(drop=True), alone)


def test_a_failed_fold_is_left_out_for_the_pair_and_for_all_ranks(study: Study):
    for k, name in enumerate("abc"):
        study.add_model(name, seed=k)
    study.change("b", 2, failure="stopped")
    pairs, ranks = compare(study, "a", "b", "c")
    pairs = pairs.set_index(["model_a", "model_b"])
    assert pairs.folds.tolist() == [4, 5, 4]
    assert pairs.note["a", "b"] == "on the 120 patients of both (a predicts 150, b 120); without fold 2"
    assert pairs.difference["a", "b"] == pytest.approx(np.delete(c_by_fold(study, "a") - c_by_fold(study, "b"), 2).mean())
    assert (ranks.folds == 4).all()


def test_a_model_without_any_prediction_is_neither_compared_nor_ranked(study: Study):
    for k, name in enumerate("abc"):
        study.add_model(name, seed=k)
    for k in range(5):
        study.change("b", k, failure="stopped")
    pairs, ranks = compare(study, "a", "b", "c")
    row = pairs[pairs.model_b == "b"].iloc[0]
    assert (row.folds, row.patients, row.note) == (0, 0, "no fold in which both can be scored on the same patients")
    assert pd.isna(row.difference)
    assert pairs.p_holm.notna().sum() == 1
    assert ranks.model.tolist()[-1] == "b"
    assert pd.isna(ranks.mean_rank.iloc[-1])
    assert (ranks.folds == 5).all()


def test_best_val_and_a_single_fold_are_noted(study: Study):
    study.add_model("a", selection="best_val")
    study.add_model("b", seed=2)
    study.k = 1
    row = compare(study, "a", "b")[0].iloc[0]
    assert row.note == "one fold: no t-test; a: epoch chosen on the test fold (best_val)"
    assert np.isfinite(row.p_bootstrap)
    assert pd.isna(row.p_t)


def test_ranks_are_means_over_folds_with_friedman_and_nemenyi(study: Study):
    for k, (name, signal) in enumerate({"weak": 0.3, "middle": 1.0, "strong": 3.0}.items()):
        study.add_model(name, signal=signal, seed=k)
    _, ranks = compare(study, "weak", "middle", "strong")
    c = np.array([c_by_fold(study, name) for name in ("weak", "middle", "strong")])
    expected = stats.rankdata(-c, axis=0).mean(1)
    np.testing.assert_allclose(ranks.set_index("model").mean_rank[["weak", "middle", "strong"]], expected)
    assert ranks.mean_rank.is_monotonic_increasing
    assert ranks.friedman_p[0] == pytest.approx(stats.friedmanchisquare(*c).pvalue)
    assert ranks.critical_difference[0] == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 5)), abs=2e-3)  # Demšar 2006, table 5


@pytest.mark.parametrize("models", [(), ("a",)])
def test_fewer_than_two_models_give_headers_only(study: Study, models: tuple[str, ...]):
    study.add_model("a")
    compare(study, *models)
    assert (study.root / "comparison.tsv").read_text() == "\t".join(PAIR_COLUMNS) + "\n"
    assert (study.root / "ranks.tsv").read_text() == "\t".join(RANK_COLUMNS) + "\n"


def test_permuting_the_rows_of_every_table_changes_no_byte_of_the_comparison(study: Study):
    for k, name in enumerate("ab"):
        study.add_model(name, seed=k, drop=("P003",) * k)
    compare(study, "a", "b")
    files = [study.root / "comparison.tsv", study.root / "ranks.tsv"]
    before = [path.read_bytes() for path in files]
    for path in (study.patients, study.splits, *(folder / "predictions.tsv" for name in "ab" for folder in study.folders(name))):
        write_table(read_table(path).sample(frac=1, random_state=1), path)
    compare(study, "a", "b")
    assert [path.read_bytes() for path in files] == before


def test_holm_by_hand_and_missing_p_values_do_not_count():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.02, np.nan, 0.9])), [0.04, np.nan, 0.9])
    assert len(holm(np.zeros(0))) == 0


def test_bootstrap_p_by_hand():
    assert bootstrap_p(np.array([-1.0, *np.ones(98)])) == pytest.approx(2 * 2 / 100)
    assert bootstrap_p(np.zeros(9)) == 1
    assert np.isnan(bootstrap_p(np.full(3, np.nan)))


def test_corrected_t_without_overlap_is_the_paired_t_test():
    d = np.random.default_rng(0).normal(0.3, 1, 12)
    assert corrected_t(d, 0.0) == pytest.approx(tuple(stats.ttest_1samp(d, 0)))
    assert corrected_t(np.full(3, 0.1), 0.25)[1] < 1e-6, "the same difference in every fold"


@pytest.mark.parametrize("folds, models", [(5, 3), (10, 4), (15, 7)])
def test_friedman_is_that_of_scipy_with_ties(folds: int, models: int):
    scores = np.random.default_rng(folds).integers(0, 4, (folds, models))
    ranks = stats.rankdata(scores, axis=1)
    assert friedman_p(ranks) == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)


def test_critical_differences_are_those_of_the_published_table():
    for models, q in ((2, 1.960), (5, 2.728), (10, 3.164)):  # Demšar 2006, table 5a
        assert critical_difference(models, 6) == pytest.approx(q * np.sqrt(models * (models + 1) / 36), rel=1e-3)
    assert np.isnan(critical_difference(3, 1))


def test_equal_models_differ_no_more_often_than_nominal(tmp_path: Path):
    """30 studies of two models that see the hazard equally well: p below 0.1 in about 3 at most (binomial: above 7 in 1 of 100)."""
    p = []
    for seed in range(30):
        study = Study(tmp_path / str(seed), patients=60, folds=3, seed=seed)
        study.add_model("a", seed=1000 + seed)
        study.add_model("b", seed=2000 + seed)
        row = compare(study, "a", "b", bootstrap=150, seed=seed)[0].iloc[0]
        p.append((row.p_bootstrap, row.p_t))
    below = (np.array(p) < 0.1).sum(0)
    assert (below <= 7).all(), below


def test_folds_that_test_the_same_patients_again_are_no_new_evidence_for_ranks(study: Study):
    """Every fold once more, as a careless repeat would have it: mean ranks, Friedman's p and the critical difference stay."""
    for k, name in enumerate("abc"):
        study.add_model(name, seed=k)
    once = compare(study, *"abc")[1]
    table = read_table(study.splits)
    write_table(pd.concat([table, table.assign(fold=table.fold.astype(int) + 5)]), study.splits)
    for name in "abc":
        for k in range(5):
            shutil.copytree(study.folder(name, k), study.folder(name, k + 5))
    study.k = 10
    twice = compare(study, *"abc")[1]
    assert (twice.folds == 10).all()
    pd.testing.assert_frame_equal(twice.drop(columns="folds"), once.drop(columns="folds"))


def test_repeats_do_not_make_equal_models_differ(tmp_path: Path):
    """40 cohorts, three equally good models, five folds dealt ten times: Friedman's p is below 0.05 in about 2 (above 6 in 1 of 100)."""
    below = 0
    for seed in range(40):
        study, random = Study(tmp_path / str(seed), patients=60, folds=1, seed=seed), np.random.default_rng(seed)
        time, event = study.table.time.to_numpy(), study.table.event.to_numpy()
        risks = study.hazard + random.normal(size=(3, 60))
        tested = [fold for _ in range(10) for fold in np.split(random.permutation(60), 5)]
        c = [[harrell(time[fold], event[fold], risk[fold]).value for risk in risks] for fold in tested]
        below += friedman_p(stats.rankdata(-np.array(c), axis=1), overlap=10) < 0.05
    assert below <= 6


def test_the_corrected_t_takes_the_sizes_of_the_split_not_of_whom_both_predict(study: Study):
    """A model that can use half of the patients has half in training, too: the correction stays 30 / 120."""
    lost = tuple(study.table.patient_id[75:])
    study.add_model("a")
    study.add_model("b", seed=2, drop=lost)
    row = compare(study, "a", "b")[0].iloc[0]
    d = c_by_fold(study, "a", lost) - c_by_fold(study, "b")
    assert row.t == pytest.approx(d.mean() / np.sqrt((1 / 5 + 30 / 120) * d.var(ddof=1)))
