"""Who trains and who is tested in which fold: made here, or imported from published lists; owner of `splits.tsv`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import tables
from pipeline.cohort.dealing import COLUMNS, TCGA_SITE, kfold_splits, monte_carlo_splits, site_splits, sites_of
from pipeline.cohort.split_lists import imported_splits, sets_of, some
from pipeline.errors import InputError, nearest

log = logging.getLogger(__name__)

METHODS = {"kfold": kfold_splits, "site": site_splits, "monte_carlo": monte_carlo_splits}


def build_splits(patients: str | Path, scheme: Mapping[str, Any], output: str | Path, seed: int = 0) -> pd.DataFrame:
    """Make or import the splits of a cohort, check them and write `output`.

    patients: `patients.tsv`. scheme: ``method`` and the arguments of that method: ``kfold`` (`kfold_splits`), ``site``
    (`site_splits`), ``monte_carlo`` (`monte_carlo_splits`) or ``imported`` (`imported_splits`, and ``allow_untested``, see
    `check_splits`). Raises `InputError` as they do.
    """
    cohort = tables.read_table(patients, ["time", "event"], patient_id="patient_id")
    cohort[["time", "event"]] = tables.numeric(cohort, ["time", "event"], patients, allow_missing=False)
    options = {key: value for key, value in scheme.items() if key not in ("method", "allow_untested")}
    method = scheme.get("method", "kfold")
    if method == "imported":
        (splits, _), source = imported_splits(cohort["patient_id"], **options), options["pattern"]
    elif method in METHODS:
        splits, source = METHODS[method](cohort, seed=seed, **options), None
    else:
        known = [*METHODS, "imported"]
        raise InputError("unknown method of splitting", found=method, expected=" or ".join(known), remedy=nearest(method, known))
    free = method == "monte_carlo" or scheme.get("allow_untested", False)
    site = options.get("site", TCGA_SITE) if method == "site" else None
    check_splits(splits, cohort, file=source, allow_untested=free, site=site)
    tables.write_table(splits, output)
    log.info("%s: %d folds of %s, digest %s", output, splits["fold"].nunique(), method, splits_digest(splits)[:12])
    return splits


def check_splits(
    splits: pd.DataFrame,
    patients: pd.DataFrame,
    *,
    file: str | Path | None = None,
    allow_untested: bool = False,
    site: str | None = None,
) -> None:
    """Raise `InputError` unless the splits can be trained and scored honestly.

    In each fold nobody trains and is tested, nobody is listed twice, and both sets have an event (of a binary label, whose time
    is the same for all, also somebody without); with `site` (see `sites_of`) no site is on both sides. Every patient of the
    cohort is tested in some fold, perhaps in several (`allow_untested` lifts that, for random draws and published hold-out
    splits). patients: patient_id, time, event.
    """
    repeated = splits[splits.duplicated(["fold", "patient_id"])]
    if len(repeated):
        fold, patient = repeated[["fold", "patient_id"]].iloc[0]
        both = splits[(splits["fold"] == fold) & (splits["patient_id"] == patient)]["set"].nunique() > 1
        problem = f"patient is in training and in test of fold {fold}" if both else f"patient is listed twice in fold {fold}"
        raise InputError(problem, file=file, found=patient, expected="train and test without a common patient")
    _check_outcomes(splits, patients, file)
    if site is not None:
        _check_sites(splits, site, file)
    untested = sorted(set(patients["patient_id"]) - set(splits.loc[splits["set"] == "test", "patient_id"]))
    if untested and not allow_untested:
        remedy = "Give all folds of the lists, or set `allow_untested: true` for a hold-out split."
        problem = f"{len(untested)} patients are tested in no fold"
        raise InputError(problem, file=file, found=some(untested), expected="every patient tested", remedy=remedy)
    if untested:
        log.warning("%d of %d patients are tested in no fold: %s", len(untested), len(patients), some(untested))


def _check_outcomes(splits: pd.DataFrame, patients: pd.DataFrame, file: str | Path | None) -> None:
    outcomes = {"event": 1, "patient without event": 0} if patients["time"].nunique() == 1 else {"event": 1}
    who = {word: set(patients.loc[patients["event"] == value, "patient_id"]) for word, value in outcomes.items()}
    for fold in sorted(splits["fold"].unique()):
        for name in ("train", "test"):
            members = set(splits.loc[(splits["fold"] == fold) & (splits["set"] == name), "patient_id"])
            for word, patients_with in who.items():
                if not members & patients_with:
                    raise InputError(
                        f"fold {fold} has no {word} in its {'training' if name == 'train' else 'test'} set",
                        file=file,
                        found=f"{len(members)} patients, {'0 events' if word == 'event' else 'all with an event'}",
                        expected=f"at least one {word}",
                        remedy="Use fewer folds, another endpoint, or other lists.",
                    )


def _check_sites(splits: pd.DataFrame, site: str, file: str | Path | None) -> None:
    named = splits.assign(site=sites_of(splits["patient_id"], site))
    sides = named.groupby(["fold", "site"])["set"].nunique()
    if (sides > 1).any():
        fold, crossing = sides[sides > 1].index[0]
        raise InputError(f"site is in training and in test of fold {fold}", file=file, found=crossing, expected="each site on one side")


def read_splits(path: str | Path) -> pd.DataFrame:
    """`splits.tsv`: fold (int, 0…), patient_id, set. Raises `InputError` for a foreign or damaged table."""
    table = tables.read_table(path, list(COLUMNS), patient_id="patient_id", unique=False)
    table["fold"] = tables.numeric(table, "fold", path, allow_missing=False)["fold"].astype(int)
    sets_of(table["set"].fillna("an empty cell"), str(path), {"train"}, {"test"})
    table = table[list(COLUMNS)]
    table.attrs["file"] = str(path)
    return table


def fold_patients(splits: pd.DataFrame, fold: int) -> tuple[list[str], list[str]]:
    """(training patients, test patients) of a fold, sorted. Raises `InputError` when there is no such fold."""
    rows = splits[splits["fold"] == fold]
    if rows.empty:
        expected, file = " or ".join(map(str, sorted(splits["fold"].unique()))), splits.attrs.get("file")
        remedy = f"The study has another number of folds than {file} was made for: delete it and run again." if file else ""
        raise InputError("no such fold", file=file, column="fold", found=fold, expected=expected, remedy=remedy)
    train, test = (sorted(rows.loc[rows["set"] == name, "patient_id"]) for name in ("train", "test"))
    return train, test


def splits_digest(splits: pd.DataFrame) -> str:
    """SHA-256 over (fold, patient, set), whatever the order of rows: two runs with one digest used the same splits."""
    rows = sorted(zip(splits["fold"].astype(int), splits["patient_id"], splits["set"], strict=True))
    return hashlib.sha256("\n".join("\t".join(map(str, row)) for row in rows).encode()).hexdigest()
