"""Every model against every other on the same folds and patients: paired intervals, corrected tests, ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.evaluation.concordance import (
    comparable_pairs,
    draw,
    interval,
    mean_of_known,
    ratio,
    resampled_concordant,
    resampled_pairs,
)
from pipeline.evaluation.folds import Cohort, folds_of, read_cohort
from pipeline.evaluation.summary import OPTIMISTIC
from pipeline.seeds import seed_from
from pipeline.tables import write_table

log = logging.getLogger(__name__)
PAIR_COLUMNS = ("model_a", "model_b", "folds", "patients", "difference", "ci_low", "ci_high", "p_bootstrap", "t", "p_t", "p_holm", "note")
RANK_COLUMNS = ("model", "mean_rank", "folds", "friedman_p", "critical_difference")
LEVEL = 0.05

Predicted = Mapping[int, np.ndarray]  # fold → sorted ids of the predicted test patients


@dataclass(frozen=True)
class Common:
    """C-indices of some models on patients that all of them predict.

    patients: how many; folds: numbers of the K folds with a comparable pair; c: model → [K];
    resampled: model → [replicates, K], from one draw for all models; test_share: n_test / n_train of the split, mean over the folds
    (a model that lacks patients lacks them on both sides); overlap: in how many of the folds a patient is tested, mean over the patients.
    """

    patients: int
    folds: list[int]
    c: Mapping[str, np.ndarray]
    resampled: Mapping[str, np.ndarray]
    test_share: float
    overlap: float


class Field:
    """The models with their folds; `common` is computed once for all models that predict the same patients."""

    def __init__(self, folders: Mapping[str, Sequence[Path]], cohort: Cohort, replicates: int, seed: int) -> None:
        self.models = {model: {fold.number: fold for fold in folds_of(paths, cohort)} for model, paths in folders.items()}
        self.predicted = {m: {k: fold.test.patient_id for k, fold in folds.items() if len(fold.risk)} for m, folds in self.models.items()}
        self.counts = {model: len(set().union(*predicted.values())) for model, predicted in self.predicted.items()}
        self.cohort, self.replicates, self.seed = cohort, replicates, seed
        groups: dict[tuple, list[str]] = {}
        for model, predicted in self.predicted.items():
            groups.setdefault(tuple((k, tuple(ids)) for k, ids in sorted(predicted.items())), []).append(model)
        self._alike = {model: tuple(members) for members in groups.values() for model in members}
        self._done: dict[frozenset, Common] = {}

    def common(self, models: Sequence[str]) -> Common:
        """The C-indices of `models`, and of all that predict the same as one of them, on what all of these predict."""
        key = frozenset(self._alike[model] for model in models)
        if key not in self._done:
            self._done[key] = self._on_common(sorted(model for members in key for model in members))
        return self._done[key]

    def _on_common(self, chosen: list[str]) -> Common:
        shared = _shared([self.predicted[model] for model in chosen])
        patients = np.unique(np.concatenate([np.zeros(0, str), *shared.values()]))
        once = np.ones((1, len(patients)), np.float32)  # the cohort as it is goes first, then its resamples
        counts = np.concatenate([once, draw(len(patients), self.replicates, self.seed)])
        folds, tested, c = [], [], {model: [] for model in chosen}
        for k, ids in shared.items():
            own = [self.models[model][k] for model in chosen]
            test, rows = own[0].test, np.searchsorted(own[0].test.patient_id, ids)
            pairs = comparable_pairs(test.time[rows], test.event[rows])
            if not len(pairs.events) or not pairs.opponents.sum():
                continue
            folds.append(k)
            tested.append(ids)
            drawn = np.take(counts, np.searchsorted(patients, ids)[pairs.order], axis=1)
            count = resampled_pairs(pairs, drawn)
            for model, fold in zip(chosen, own, strict=True):
                risk = fold.risk[np.searchsorted(fold.test.patient_id, ids)]
                c[model].append(ratio(resampled_concordant(pairs, risk, drawn), count))
        share = [len(self.cohort.test[k].time) / len(self.cohort.train[k].time) for k in folds if k in self.cohort.train]
        everyone = np.concatenate([np.zeros(0, str), *tested])
        all_c = {model: np.reshape(values, (len(folds), len(counts))).T for model, values in c.items()}
        observed, resampled = {m: x[0] for m, x in all_c.items()}, {m: x[1:] for m, x in all_c.items()}
        overlap = len(everyone) / max(1, len(np.unique(everyone)))
        return Common(len(patients), folds, observed, resampled, float(np.mean(share)) if share else np.nan, overlap)


def compare_models(
    *,
    cohort: str,
    folders: Mapping[str, Sequence[Path]],
    patients: Path,
    splits: Path,
    output: Path,
    ranks: Path,
    bootstrap: int,
    seed: int,
) -> None:
    """Write `output` (a row a pair of models, in the order of `folders`) and `ranks` (a row a model, best first).

    folders: model → its fold folders. A pair is compared on the folds in which both have a C-index and on the patients whom
    both predict. `difference` is the mean over folds of C(a) − C(b); its 95 % interval and `p_bootstrap` come from resampling the
    patients of both at once; `t`, `p_t` are the corrected resampled t-test; `p_holm` is Holm's adjustment of `p_t` over all pairs
    (our choice: the t-test knows the spread over training sets, the bootstrap only that over test patients). Fewer than two
    models: headers only. Raises `InputError` as `evaluate_model` does.
    """
    field = Field(folders, read_cohort(patients, splits), bootstrap, seed_from(cohort, seed))
    table = pd.DataFrame([_pair_row(field, a, b) for a, b in combinations(folders, 2)], columns=list(PAIR_COLUMNS))
    table["p_holm"] = holm(table["p_t"].to_numpy(float))
    write_table(table, output)
    write_table(_rank_table(field), ranks)
    log.info("%s: %d pairs of models compared", cohort, len(table))


def _shared(predicted: Sequence[Predicted]) -> dict[int, np.ndarray]:
    """fold → the patients whom all predict; folds without any are left out."""
    shared = {}
    for k in sorted(set.intersection(*(set(one) for one in predicted))):
        ids = predicted[0][k]
        for one in predicted[1:]:
            ids = ids if np.array_equal(ids, one[k]) else np.intersect1d(ids, one[k], assume_unique=True)
        if len(ids):
            shared[k] = ids
    return shared


def _pair_row(field: Field, a: str, b: str) -> dict[str, object]:
    common = field.common((a, b))
    difference = common.c[a] - common.c[b]
    replicates = mean_of_known(common.resampled[a] - common.resampled[b])
    t, p = corrected_t(difference, common.test_share)
    low, high, _ = interval(replicates)
    return {
        "model_a": a,
        "model_b": b,
        "folds": len(common.folds),
        "patients": common.patients,
        "difference": difference.mean() if len(difference) else np.nan,
        "ci_low": low,
        "ci_high": high,
        "p_bootstrap": bootstrap_p(replicates),
        "t": t,
        "p_t": p,
        "note": "; ".join(_notes(field, common, a, b)),
    }


def _notes(field: Field, common: Common, a: str, b: str) -> Iterator[str]:
    if not common.folds:
        yield "no fold in which both can be scored on the same patients"
    if common.folds and {field.counts[a], field.counts[b]} != {common.patients}:
        yield f"on the {common.patients} patients of both ({a} predicts {field.counts[a]}, {b} {field.counts[b]})"
    lacking = sorted((field.models[a].keys() | field.models[b].keys()) - set(common.folds))
    if common.folds and lacking:
        yield f"without fold {', '.join(map(str, lacking))}"
    if len(common.folds) == 1:
        yield "one fold: no t-test"
    for model in (a, b):
        if any(fold.selection == "best_val" for fold in field.models[model].values()):
            yield f"{model}: {OPTIMISTIC}"


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of the resampled `differences` [replicates]: twice the smaller tail, a tail being (1 + count) / (1 + replicates)."""
    known = differences[np.isfinite(differences)]
    if not len(known):
        return np.nan
    tail = 1 + min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * tail / (1 + len(known))))


def corrected_t(differences: np.ndarray, test_share: float) -> tuple[float, float]:
    """t and two-sided p of the corrected resampled t-test over k folds (Nadeau and Bengio 2003), k − 1 degrees of freedom.

    The training sets of the folds overlap, so the variance of the mean of `differences` [k] is taken as (1/k + n_test/n_train)
    times their variance; `test_share` is n_test/n_train. NaN for one fold; equal models (no difference anywhere): t 0, p 1.
    """
    from scipy.special import stdtr

    k = len(differences)
    if k < 2:
        return np.nan, np.nan
    mean, error = float(differences.mean()), math.sqrt((1 / k + test_share) * float(differences.var(ddof=1)))
    if error == 0:
        return (0.0, 1.0) if mean == 0 else (math.copysign(math.inf, mean), 0.0)
    return mean / error, float(2 * stdtr(k - 1, -abs(mean / error)))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) step-down adjustment of the p-values `p` [m]; NaN stay NaN and are not counted."""
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def _rank_table(field: Field) -> pd.DataFrame:
    """Mean ranks over the folds in which every model has a C-index, on the patients whom all predict; models without any fold unranked.

    Friedman's and Nemenyi's tests take their blocks for independent. Folds that test the same patients again are not: K folds in which a
    patient is tested m times, on average, count as K/m blocks (our choice; else repeats alone would make any two models differ).
    """
    if len(field.models) < 2:
        return pd.DataFrame(columns=list(RANK_COLUMNS))
    ranked = [model for model in field.models if field.predicted[model]]
    scores, overlap = np.zeros((0, len(ranked))), 1.0
    if len(ranked) > 1:
        common = field.common(ranked)
        scores, overlap = np.column_stack([common.c[model] for model in ranked]), common.overlap
    ranks = pd.DataFrame(-scores, columns=ranked).rank(axis=1)
    folds, p = len(ranks), friedman_p(ranks.to_numpy(), overlap)
    width = critical_difference(len(ranked), folds / max(1.0, overlap))
    rows = [(model, ranks[model].mean() if model in ranks else np.nan, folds, p, width) for model in field.models]
    return pd.DataFrame(rows, columns=list(RANK_COLUMNS)).sort_values("mean_rank", kind="stable", ignore_index=True)


def friedman_p(ranks: np.ndarray, overlap: float = 1.0) -> float:
    """p of the Friedman test for `ranks` [folds, models] (ties averaged, corrected for); NaN below 2 folds or where all models tie.

    overlap: in how many folds a patient is tested; the statistic is divided by it.
    """
    from scipy.special import chdtrc

    folds, models = ranks.shape
    spread = float(((ranks - (models + 1) / 2) ** 2).sum())
    if folds < 2 or models < 2 or spread == 0:
        return np.nan
    statistic = (models - 1) * float(((ranks.sum(0) - folds * (models + 1) / 2) ** 2).sum()) / spread
    return float(chdtrc(models - 1, statistic / overlap))


def critical_difference(models: int, folds: float) -> float:
    """The difference of mean ranks that is significant at 0.05 by Nemenyi's test (Demšar 2006); NaN below 2 models or folds.

    folds: independent ones; not whole where folds share test patients.
    """
    from scipy.stats import studentized_range

    if models < 2 or folds < 2:
        return np.nan
    return float(studentized_range.ppf(1 - LEVEL, models, np.inf) / math.sqrt(2) * math.sqrt(models * (models + 1) / (6 * folds)))
