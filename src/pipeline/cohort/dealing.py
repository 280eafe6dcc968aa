"""Splits made here: patients, or whole sites, dealt to folds so that every fold looks like the cohort."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.seeds import seed_from

COLUMNS = ("fold", "patient_id", "set")
TCGA_SITE = r"^[^-]+-([^-]+)-"


def kfold_splits(patients: pd.DataFrame, folds: int = 5, seed: int = 0, *, repeats: int = 1) -> pd.DataFrame:
    """Stratified k-fold splits; in each of `repeats` rounds each patient is tested once. Returns fold, patient_id, set.

    patients: patient_id, time, event. Patients are ordered by event status, then time, then id, and each run of `folds`
    neighbours is dealt to the folds at random, so that folds differ by at most one patient and one event and cover the
    same range of times (our choice). Round r makes the folds ``r·folds … (r + 1)·folds − 1``. The result depends on who the
    patients are and on `seed`, not on the order of rows; the first rounds do not depend on `repeats`.
    Raises `InputError` when `folds` is below 2 or above the number of patients or of events.
    """
    _check_folds(patients, folds, repeats)
    ordered = _strata(patients)
    parts = []
    for r in range(repeats):
        random = np.random.default_rng(seed_from("kfold", folds, seed, *[r][: r > 0]))
        rounds = -(-len(ordered) // folds)
        parts += _rotated(ordered, np.concatenate([random.permutation(folds) for _ in range(rounds)])[: len(ordered)], folds, r)
    return in_order(parts)


def monte_carlo_splits(patients: pd.DataFrame, folds: int = 15, seed: int = 0, *, test_share: float = 0.2) -> pd.DataFrame:
    """`folds` independent draws of a test set of about `test_share` of the patients; the others train. Returns fold, patient_id, set.

    patients: patient_id, time, event. Of the patients with an event, and of those without, the share is tested (rounded, one at
    least): each ordered by time and cut into as many runs of neighbours as there are patients to draw, one from each run (our
    choice), so that a draw covers the range of times. Somebody may be tested several times or never. The result depends on who
    the patients are and on `seed`, and draw k not on how many follow. Raises `InputError` for a share outside (0, 1).
    """
    if folds < 1 or not 0 < test_share < 1:
        found = f"{folds} draws, test_share {test_share}"
        raise InputError("cannot draw the test sets", found=found, expected="1 draw or more, a share between 0 and 1")
    ordered = _strata(patients)
    events = int((patients["event"] == 1).sum())
    parts = []
    for k in range(folds):
        random = np.random.default_rng(seed_from("monte_carlo", test_share, seed, k))
        tested = np.concatenate([_one_of_each_run(stratum, test_share, random) for stratum in (ordered[:events], ordered[events:])])
        parts.append(_fold(k, ordered, np.isin(ordered, tested)))
    return in_order(parts)


def site_splits(patients: pd.DataFrame, folds: int = 5, seed: int = 0, *, repeats: int = 1, site: str = TCGA_SITE) -> pd.DataFrame:
    """k-fold splits in which no site is on both sides: whole sites are dealt to the folds. Returns fold, patient_id, set.

    patients: patient_id, event. `site`: see `sites_of`. Sites are dealt by size, largest first, each to the fold that is then most
    even, and single sites are moved and pairs exchanged as long as that makes the folds more even (our choice; the measure is the
    sum over folds of the squared shares of patients and of events). Ties are broken by `seed` and by the round of `repeats`. The
    result does not depend on the order of rows. Raises `InputError` as `kfold_splits` and `sites_of` do, when there are fewer
    sites than folds, and when a fold is left without an event.
    """
    _check_folds(patients, folds, repeats)
    table = patients.sort_values("patient_id").assign(site=lambda t: sites_of(t["patient_id"], site))
    sizes = table.groupby("site")["event"].agg(["size", "sum"])
    if len(sizes) < folds:
        remedy = "Use fewer folds, or another expression under `site`."
        raise InputError("there are fewer sites than folds", found=f"{len(sizes)} sites", expected=f"{folds} or more", remedy=remedy)
    parts = []
    for r in range(repeats):
        random = np.random.default_rng(seed_from("site", folds, seed, r))
        fold_of = _deal_sites(sizes.to_numpy(float), folds, random)
        events = np.bincount(fold_of, weights=sizes["sum"], minlength=folds)
        if not events.all():
            found = f"{int((sizes['sum'] > 0).sum())} sites with an event, {folds} folds"
            raise InputError("a fold would have no event to test on", found=found, expected="an event in each", remedy="Use fewer folds.")
        dealt = table["site"].map(dict(zip(sizes.index, fold_of, strict=True))).to_numpy()
        parts += _rotated(table["patient_id"].to_numpy(), dealt, folds, r)
    return in_order(parts)


def sites_of(patients: Iterable[str], site: str = TCGA_SITE) -> list[str]:
    """Each patient's site: the first group of the regular expression `site`, searched in his id (default: TCGA's second field).

    Raises `InputError` for an expression without a group and for an id in which it finds nothing.
    """
    try:
        pattern = re.compile(site)
    except re.error as error:
        raise InputError(f"`site` is not a regular expression ({error})", found=site) from error
    if not pattern.groups:
        raise InputError("`site` has no group", found=site, expected="parentheses around the part of the patient id that is the site")
    found = []
    for patient in patients:
        match = pattern.search(patient)
        if match is None or not match.group(1):
            remedy = "Set `site` to an expression whose first group is the site, or split by `kfold`."
            raise InputError("patient id does not tell a site", found=patient, expected=f"an id in which {site} is found", remedy=remedy)
        found.append(match.group(1))
    return found


def in_order(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The parts as one table, by fold and patient."""
    return pd.concat(list(parts)).sort_values(["fold", "patient_id"], kind="stable", ignore_index=True)[list(COLUMNS)]


def _check_folds(patients: pd.DataFrame, folds: int, repeats: int) -> None:
    events = int((patients["event"] == 1).sum())
    if not 2 <= folds <= len(patients) or repeats < 1:
        found = f"{folds} folds, {len(patients)} patients" + (f", {repeats} repeats" if repeats != 1 else "")
        raise InputError("cannot make the folds", found=found, expected="2 folds or more, a patient in each")
    if events < folds:
        raise InputError(
            "a fold would have no event to test on",
            found=f"{folds} folds, {events} events",
            expected="at least one event a fold",
            remedy="Use fewer folds or another endpoint.",
        )


def _strata(patients: pd.DataFrame) -> np.ndarray:
    """Ids [P] by event status (events first), then time, then id."""
    return patients.sort_values(["event", "time", "patient_id"], ascending=[False, True, True])["patient_id"].to_numpy()


def _fold(number: int, ids: np.ndarray, tested: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"fold": number, "patient_id": ids, "set": np.where(tested, "test", "train")})


def _rotated(ids: np.ndarray, fold_of: np.ndarray, folds: int, repeat: int) -> list[pd.DataFrame]:
    """The folds of one round: each group of patients is tested once."""
    return [_fold(repeat * folds + k, ids, fold_of == k) for k in range(folds)]


def _one_of_each_run(ids: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """About `share` of `ids`, one of each run of neighbours; which runs are one longer is random, or the last would be drawn more often."""
    count = min(len(ids), max(1, round(share * len(ids))))
    if not count:
        return ids[:0]
    lengths = random.permutation([len(run) for run in np.array_split(ids, count)])
    return ids[np.cumsum(lengths) - lengths + random.integers(lengths)]


def _deal_sites(sizes: np.ndarray, folds: int, random: np.random.Generator) -> np.ndarray:
    """The fold [S] of each site; sizes [S, 2]: patients and events."""
    shares = sizes / sizes.sum(axis=0)
    names = random.permutation(folds)  # which of equal folds comes first
    fold_of = np.zeros(len(shares), dtype=int)
    load = np.zeros((folds, 2))
    for site in np.lexsort((random.permutation(len(sizes)), -sizes[:, 1], -sizes[:, 0])):
        fold_of[site] = names[np.argmin((load[names] * shares[site]).sum(axis=1))]
        load[fold_of[site]] += shares[site]
    while (better := _improved(shares, fold_of, load)) is not None:
        fold_of = better
        load = np.stack([np.bincount(fold_of, weights=column, minlength=folds) for column in shares.T], axis=1)
    return fold_of


def _improved(shares: np.ndarray, fold_of: np.ndarray, load: np.ndarray) -> np.ndarray | None:
    """The deal after the one move or exchange that makes the folds most even; None when none does, so that this ends.

    Taking the shares d into a fold of load a, out of one of load b, changes the sum of squares by 2d·(a − b) + 2d²; within one fold
    (a = b) that is never an improvement.
    """
    own = load[fold_of]
    moved = 2 * (shares[:, None] * (load[None] - own[:, None] + shares[:, None])).sum(axis=2)  # [S, folds]
    difference = shares[None] - shares[:, None]  # [i, j]: what i's fold gains when i and j change places
    exchanged = 2 * (difference * (own[:, None] - own[None] + difference)).sum(axis=2)
    deal = fold_of.copy()
    if min(moved.min(), exchanged.min()) > -1e-9:
        return None
    if moved.min() <= exchanged.min():
        site, fold = np.unravel_index(moved.argmin(), moved.shape)
        deal[site] = fold
    else:
        i, j = np.unravel_index(exchanged.argmin(), exchanged.shape)
        deal[i], deal[j] = fold_of[j], fold_of[i]
    return deal
