import numpy as np
import pandas as pd

from pipeline.evaluation.comparison import PAIR_COLUMNS
from pipeline.evaluation.summary import COLUMNS, TEXT
from pipeline.report.findings import MAX_NAMES, failed_folds, findings

OPTIMISTIC = "epoch chosen on the test fold (best_val) in fold 0: c_index is optimistic"


def row(model: str, c: float, low: float, high: float, **more: object) -> dict:
    figures = {"model": model, "c_index": c, "c_index_ci_low": low, "c_index_ci_high": high, "folds": 5, "ibs": 0.2, "patients": 100}
    return dict.fromkeys(COLUMNS, np.nan) | dict.fromkeys(TEXT, "") | figures | more


def said(*rows: dict, **options: object) -> list[str]:
    return [sentence for _, sentence in findings(pd.DataFrame(rows), **options)]


def pair(a: str, b: str, difference: float, p: float) -> dict:
    return dict.fromkeys(PAIR_COLUMNS, 0.0) | {"model_a": a, "model_b": b, "difference": difference, "p_holm": p}


def test_an_optimistic_figure_is_never_called_the_highest():
    cheat = row("cheat", 0.9, 0.8, 0.95, note=OPTIMISTIC)
    found = findings(pd.DataFrame([cheat, row("fair", 0.7, 0.65, 0.75), row("weak", 0.5, 0.4, 0.6)]))
    assert found[0] == ("result", "fair has the highest C-index: 0.700 (95 % interval 0.650 to 0.750, mean over 5 folds).")
    assert ("problem", "Epoch chosen on the test fold, C-index optimistic: cheat.") in found
    assert ("caution", "Not told apart from chance (interval contains 0.5): weak.") in found


def test_overlapping_intervals_are_not_ranked():
    found = said(row("a", 0.7, 0.65, 0.75), row("b", 0.68, 0.62, 0.74), row("c", 0.6, 0.55, 0.64))
    assert found[0].endswith("The intervals of 1 of the 2 other models reach into its interval: this table does not rank them.")


def test_one_model_is_not_called_the_highest_and_bad_calibration_is_said():
    assert said(row("snn", 0.585, 0.529, 0.637, ibs=0.337, optimism=0.037, c_index_best_epoch=0.622, d_calibration_p=0.004)) == [
        "snn has a C-index of 0.585 (95 % interval 0.529 to 0.637, mean over 5 folds).",
        "Choosing each fold's epoch on its own test patients would add 0.037 to the C-index: 0.622 in place of 0.585.",
        "Predicted survival curves do not agree with the observed times (D-calibration p < 0.05): snn.",
        "Survival curves worse than predicting 0.5 for everybody at all times (IBS above 0.25): snn.",
    ]


def test_a_gap_that_the_page_shows_as_zero_is_not_worth_a_sentence():
    assert len(said(row("coxnet", 0.6, 0.55, 0.65, optimism=-8.6e-12, c_index_best_epoch=0.6))) == 1


def test_a_binary_endpoint_speaks_of_auc_and_of_the_majority():
    found = said(
        row("forest", 0.8, 0.7, 0.9, accuracy=0.83, majority=0.8), row("mlp", 0.7, 0.6, 0.8, accuracy=0.8, majority=0.8), measure="AUC"
    )
    assert found[0].startswith("forest has the highest AUC: 0.800")
    assert "Accuracy not above that of giving everybody the more frequent label: mlp (0.800 against 0.800)." in found
    assert said(row("mlp", 0.7, 0.6, 0.8), measure="AUC")[0].startswith("mlp has an AUC of 0.700")
    assert "No model has an AUC from an epoch that was fixed without the test patients." in said(
        row("mlp", 0.7, 0.6, 0.8, note=OPTIMISTIC), measure="AUC"
    )


def test_models_are_held_against_the_clinical_reference_whichever_side_of_the_pair_they_are_on():
    table = [row("a", 0.7, 0.6, 0.8), row("cox", 0.6, 0.55, 0.7), row("b", 0.62, 0.55, 0.7), row("c", 0.52, 0.51, 0.53)]
    table += [row("d", 0.66, 0.6, 0.7)]
    likely = pair("cox", "d", -0.06, 0.3) | {"ci_low": -0.1, "ci_high": -0.02}
    pairs = [pair("a", "cox", 0.1, 0.01), pair("cox", "b", -0.02, 0.4), pair("cox", "c", 0.08, 0.001), pair("a", "b", 0.08, 0.001), likely]
    found = said(*table, reference="cox", pairs=pd.DataFrame(pairs))
    name = "the clinical reference cox (C-index 0.600)"
    assert f"Better than {name} by the paired test (Holm-adjusted p < 0.05): a." in found
    unsure = f"Better than {name} on these test patients (bootstrap interval above 0), but not surely on others: folds differ too much"
    assert f"{unsure} (Holm-adjusted p ≥ 0.05): d." in found
    rest = f"Not better than {name} by either test, or the lower figure: b, c."
    assert rest in found


def test_a_reference_without_figures_is_missed():
    table = [row("a", 0.7, 0.6, 0.8), row("cox", np.nan, np.nan, np.nan, folds=np.nan, note="not run: no table clinical")]
    text = "The clinical reference cox has no figures: nothing says what clinical variables alone would do."
    assert text in said(*table, reference="cox")
    assert text not in said(*table)


def test_a_figure_within_the_noise_floor_is_told():
    table = [
        row("a", 0.6, 0.55, 0.65, c_index_best_epoch=0.66, noise_floor=0.6),
        row("b", 0.55, 0.51, 0.6, c_index_best_epoch=0.59, noise_floor=0.6),
    ]
    (told,) = (sentence for sentence in said(*table) if "noise floor" in sentence)
    assert told.endswith("after training on permuted labels: b (0.590 against 0.600).")


def test_the_hazard_ratio_of_the_best_model_is_told_only_where_its_interval_lies_above_one():
    ratio = {"hazard_ratio": 2.104, "hazard_ratio_ci_low": 1.43, "hazard_ratio_ci_high": 3.09}
    none = {"hazard_ratio": 1.1, "hazard_ratio_ci_low": 0.7, "hazard_ratio_ci_high": 1.7}
    found = said(row("a", 0.7, 0.6, 0.8, **ratio), row("b", 0.6, 0.55, 0.65, **none))
    text = "By a, patients above the median risk of their fold have the event at 2.10 times the rate of the others"
    assert f"{text} (hazard ratio, 95 % interval 1.43 to 3.09)." in found
    assert "Risk halves not told apart (interval of the hazard ratio contains 1): b." in found
    assert not any(sentence.startswith("By") for sentence in said(row("b", 0.6, 0.55, 0.65, **none)))


def test_rows_on_other_splits_or_other_patients_are_told_apart():
    found = findings(pd.DataFrame([row("a", 0.7, 0.6, 0.8, splits="aa"), row("b", 0.6, 0.55, 0.65, splits="bb", patients=90)]))
    assert ("problem", "The models were not evaluated on the same splits: their figures cannot be compared.") in found
    assert any("different patients (90 to 100)" in sentence for _, sentence in found)


def test_long_lists_of_models_are_cut():
    found = said(*(row(f"m{number:02d}", 0.5, 0.4, 0.6) for number in range(MAX_NAMES + 28)))
    assert any(sentence.endswith("m11 and 28 more.") for sentence in found)


def test_a_reason_that_several_folds_share_is_told_once():
    assert (
        failed_folds("0 (no event (of 3).), 1 (diverged at 2 (nan)), 3 (no event (of 3).)")
        == "0, 3 (no event (of 3)); 1 (diverged at 2 (nan))"
    )
    assert failed_folds("") == ""
    assert failed_folds("damaged") == "damaged"


def test_molecular_numbers_of_unknown_unit_are_said():
    tables = [{"file": "rna.tsv", "kind": "rnaseq", "unit": "unknown"}, {"file": "cnv.tsv", "kind": "cnv", "unit": "cnv_calls"}]
    assert said(row("snn", 0.7, 0.65, 0.75), molecular=tables)[1:] == [
        "Of unknown unit, and read by the models as they are (counts and TPM would be made logarithms; state `unit`): "
        "the rnaseq values of rna.tsv."
    ]
