"""The sentences at the top of the report: what the tables say, and what they cannot say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from pipeline.evaluation.summary import is_optimistic
from pipeline.report.comparison import SIGNIFICANT, against

COIN = 0.25  # integrated Brier score of predicting 0.5 for everybody at all times
VISIBLE = 0.0005  # smaller differences are 0.000 on the page
MAX_NAMES = 12
_FAILED = re.compile(r"(\d+) \((.*?)\)(?:, (?=\d+ \()|$)")
Finding = tuple[str, str]


def findings(
    table: pd.DataFrame,
    *,
    measure: str = "C-index",
    reference: str | None = None,
    pairs: pd.DataFrame | None = None,
    molecular: Sequence[Mapping[str, object]] = (),
) -> list[Finding]:
    """(kind, sentence) with kind ``result``, ``caution`` or ``problem``.

    table: the summary by descending c_index. measure: what `c_index` is called here. reference: the clinical model that all are held
    against. pairs: of `read_comparison`, where models were compared. molecular: of `molecular_tables`.
    """
    known = table[np.isfinite(table.c_index)]
    fair = known[np.array([not is_optimistic(row) for row in known.to_dict("records")], bool)]
    return [
        *_best(known, fair, measure),
        *_separation(fair),
        *_reference(known, reference, pairs, measure),
        *_chance(known),
        *_habit(known, measure),
        *_noise(known),
        *_calibration(known),
        *_majority(known),
        *_optimistic(known, fair, measure),
        *_coverage(known),
        *_units(molecular),
        *_failures(table),
    ]


def failed_folds(text: str) -> str:
    """The summary's ``failed_folds`` with each reason told once: ``0 (why), 1 (why)`` → ``0, 1 (why)``."""
    folds: dict[str, list[str]] = {}
    for fold, reason in _FAILED.findall(text):
        folds.setdefault(reason, []).append(fold)
    return "; ".join(f"{', '.join(numbers)} ({reason.rstrip('.')})" for reason, numbers in folds.items()) or text


def _names(models: Iterable[str]) -> str:
    names = list(models)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _about(kind: str, text: str, models: Iterable[str]) -> list[Finding]:
    names = _names(models)
    return [(kind, f"{text}: {names}.")] if names else []


def _best(known: pd.DataFrame, fair: pd.DataFrame, measure: str) -> list[Finding]:
    if known.empty:
        return [("problem", "No model has figures.")]
    if fair.empty:
        return [("problem", f"No model has {_article(measure)} {measure} from an epoch that was fixed without the test patients.")]
    best = fair.iloc[0]
    interval = f"95 % interval {best.c_index_ci_low:.3f} to {best.c_index_ci_high:.3f}"
    what = f"has the highest {measure}:" if len(fair) > 1 else f"has {_article(measure)} {measure} of"
    text = f"{best.model} {what} {best.c_index:.3f} ({interval}, mean over {best.folds:.0f} folds)."
    rivals = int((fair.c_index_ci_high.iloc[1:] >= best.c_index_ci_low).sum())
    if rivals:
        text += f" The intervals of {rivals} of the {len(fair) - 1} other models reach into its interval: this table does not rank them."
    return [("result", text)]


def _article(measure: str) -> str:
    return "an" if measure[0] in "AEIO" else "a"


def _reference(known: pd.DataFrame, reference: str | None, pairs: pd.DataFrame | None, measure: str) -> list[Finding]:
    if reference is None:
        return []
    own = known[known.model == reference]
    if own.empty:
        return [("caution", f"The clinical reference {reference} has no figures: nothing says what clinical variables alone would do.")]
    if pairs is None:
        return []
    held = against(pairs[np.isfinite(pairs.p_holm)], reference)
    beaten = (held.difference > 0) & (held.p_holm < SIGNIFICANT)
    likely = ~beaten & (held.ci_low > 0)
    name = f"the clinical reference {reference} ({measure} {own.c_index.iloc[0]:.3f})"
    unsure = f"Better than {name} on these test patients (bootstrap interval above 0), but not surely on others: folds differ too much"
    return [
        *_about("result", f"Better than {name} by the paired test (Holm-adjusted p < {SIGNIFICANT})", held.model_a[beaten]),
        *_about("caution", f"{unsure} (Holm-adjusted p ≥ {SIGNIFICANT})", held.model_a[likely]),
        *_about("caution", f"Not better than {name} by either test, or the lower figure", held.model_a[~beaten & ~likely]),
    ]


def _chance(known: pd.DataFrame) -> list[Finding]:
    names = known.model[(known.c_index_ci_low <= 0.5) & (known.c_index_ci_high >= 0.5)]
    return _about("caution", "Not told apart from chance (interval contains 0.5)", names)


def _habit(known: pd.DataFrame, measure: str) -> list[Finding]:
    gaps = known[known.optimism >= VISIBLE]
    if gaps.empty:
        return []
    top = gaps.loc[gaps.optimism.idxmax()]
    text = f"Choosing each fold's epoch on its own test patients would add {gaps.optimism.mean():.3f} to the {measure}"
    text += f" on average, most for {top.model}" if len(gaps) > 1 else ""
    return [("caution", f"{text}: {top.c_index_best_epoch:.3f} in place of {top.c_index:.3f}.")]


def _noise(known: pd.DataFrame) -> list[Finding]:
    lost = known[known.c_index_best_epoch <= known.noise_floor]
    names = [f"{row.model} ({row.c_index_best_epoch:.3f} against {row.noise_floor:.3f})" for row in lost.itertuples()]
    text = "The figure by best test epoch lies within the noise floor, what the same choice prints after training on permuted labels"
    return _about("caution", text, names)


def _separation(fair: pd.DataFrame) -> list[Finding]:
    """The hazard ratio of the best model, and those models whose interval holds 1."""
    ratios = fair[np.isfinite(fair.hazard_ratio)]
    if ratios.empty:
        return []
    best, found = ratios.iloc[0], []
    if best.hazard_ratio_ci_low > 1:
        text = f"By {best.model}, patients above the median risk of their fold have the event at {best.hazard_ratio:.2f} times the rate"
        interval = f"hazard ratio, 95 % interval {best.hazard_ratio_ci_low:.2f} to {best.hazard_ratio_ci_high:.2f}"
        found.append(("result", f"{text} of the others ({interval})."))
    apart = (ratios.hazard_ratio_ci_low > 1) | (ratios.hazard_ratio_ci_high < 1)
    return found + _about("caution", "Risk halves not told apart (interval of the hazard ratio contains 1)", ratios.model[~apart])


def _calibration(known: pd.DataFrame) -> list[Finding]:
    text = "Predicted survival curves do not agree with the observed times (D-calibration p < 0.05)"
    coin = f"Survival curves worse than predicting 0.5 for everybody at all times (IBS above {COIN})"
    return [
        *_about("caution", text, known.model[known.d_calibration_p < SIGNIFICANT]),
        *_about("caution", coin, known.model[known.ibs > COIN]),
    ]


def _majority(known: pd.DataFrame) -> list[Finding]:
    low = known[known.accuracy <= known.majority]
    names = [f"{row.model} ({row.accuracy:.3f} against {row.majority:.3f})" for row in low.itertuples()]
    return _about("caution", "Accuracy not above that of giving everybody the more frequent label", names)


def _optimistic(known: pd.DataFrame, fair: pd.DataFrame, measure: str) -> list[Finding]:
    return _about("problem", f"Epoch chosen on the test fold, {measure} optimistic", known.model[~known.index.isin(fair.index)])


def _coverage(known: pd.DataFrame) -> list[Finding]:
    """Where the rows do not rest on the same splits or the same patients."""
    found = []
    if known.splits[known.splits != ""].nunique() > 1:
        found.append(("problem", "The models were not evaluated on the same splits: their figures cannot be compared."))
    if known.patients.nunique() > 1:
        few, many = known.patients.min(), known.patients.max()
        text = f"The rows of the table rest on different patients ({few:.0f} to {many:.0f}), because some models could not predict all."
        found.append(("caution", text))
    return found


def _units(molecular: Iterable[Mapping[str, object]]) -> list[Finding]:
    text = "Of unknown unit, and read by the models as they are (counts and TPM would be made logarithms; state `unit`)"
    return _about("caution", text, [f"the {table['kind']} values of {table['file']}" for table in molecular if table["unit"] == "unknown"])


def _failures(table: pd.DataFrame) -> list[Finding]:
    failed = table[table.failed_folds != ""]
    rest = {True: "its figures are those of the other folds", False: "it has no figures"}
    found = [
        ("problem", f"{row.model}: failed in fold {failed_folds(row.failed_folds)}; {rest[row.folds > 0]}.") for row in failed.itertuples()
    ]
    absent = table.model[table.folds.isna()]
    return found + ([("caution", f"Not run: {_names(absent)} (reasons below).")] if len(absent) else [])
