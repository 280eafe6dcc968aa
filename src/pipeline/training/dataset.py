"""From a cohort's files to what one fold's model reads; everything fitted is fitted on the training patients alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cohort.bags import read_bags
from pipeline.cohort.loader import MEMORY_MB, BagStore, CohortData, resident_bytes
from pipeline.cohort.splits import fold_patients, read_splits
from pipeline.cohort.vectors import Vectors, read_vectors
from pipeline.errors import InputError
from pipeline.models.interface import Inputs
from pipeline.omics.matrix import OmicsMatrix, read_matrix
from pipeline.omics.scaling import Scaler
from pipeline.omics.selection import Selection
from pipeline.tables import numeric, read_table


@dataclass(frozen=True)
class RawData:
    """What all folds of a study read, as it is on disk: read once for all of them, and changed by none.

    patients: the cohort's table, sorted by id, with numbers for time and event. splits: the table of the folds. matrix and groups: of the
    molecular features, None where no model asks for them. tables and bags: by modality; no slides where nobody has one.
    """

    patients: pd.DataFrame
    splits: pd.DataFrame
    matrix: OmicsMatrix | None = None
    groups: pd.DataFrame | None = None
    tables: Mapping[str, Vectors] = field(default_factory=dict)
    bags: Mapping[str, BagStore] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Mapping[str, Any], settings: Mapping[str, Any], memory_mb: float = MEMORY_MB) -> RawData:
        """Read the modalities that the model of `settings` (see `study.fold_settings`) asks for.

        files: `patients`, `splits`, `matrix`, `groups`, `manifest` (a path or None), `bags` (modality → path). memory_mb: of the job, a
        share of which holds features (`resident_bytes`); each modality of bags gets an equal part of it.
        Raises `InputError` for a file that cannot be used.
        """
        patients = read_patients(files["patients"])
        matrix, groups, tables, bags = None, None, {}, {}
        of_bags = [m for m in settings["modalities"] if m == "wsi" or m in files["bags"]]
        resident = resident_bytes(memory_mb) // max(1, len(of_bags))
        for modality in settings["modalities"]:
            if modality == "wsi":
                if slides := load_bags(files["manifest"], patients, resident):
                    bags[modality] = slides
            elif modality in files["bags"]:
                bags[modality] = BagStore.of_bags(read_bags(files["bags"][modality]), resident)
            elif modality == "omics":
                matrix, groups = read_matrix(files["matrix"]), read_table(files["groups"], ["grouping", "group", "feature"])
            else:
                tables[modality] = read_vectors(**settings["tables"][modality])
        return cls(patients, read_splits(files["splits"]), matrix, groups, tables, bags)

    def sides(self, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The patients of the fold's training and of its test side, each sorted by id."""
        train, test = (self.patients[self.patients["patient_id"].isin(ids)] for ids in fold_patients(self.splits, fold))
        return train.reset_index(drop=True), test.reset_index(drop=True)


def read_patients(file: str | Path) -> pd.DataFrame:
    """The cohort's table, sorted by id, with numbers for time and event."""
    patients = read_table(file, ["time", "event"], patient_id="patient_id")
    patients[["time", "event"]] = numeric(patients, ["time", "event"], file, allow_missing=False)
    return patients.sort_values("patient_id").reset_index(drop=True)


@dataclass
class Offered:
    """`data` for the loop, `inputs` for the model; `scaling` and `columns` by modality for whoever uses the model later."""

    data: CohortData
    inputs: Inputs
    scaling: dict[str, Scaler] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)


def load_bags(manifest: Path, patients: pd.DataFrame, resident: int) -> BagStore | None:
    """Every patient's feature files, as the cohort's table lists their slides (None: nobody has one); `resident`: see `BagStore.open`.

    Raises `InputError` for a file that is another one than the manifest lists.
    """
    rows = read_table(manifest, ["slide_id", "status", "features", "checksum"])
    paths = dict(zip(rows["slide_id"], rows["features"], strict=True))
    files = {
        patient: [paths[slide] for slide in slides.split(";")]
        for patient, slides in zip(patients["patient_id"], patients["slides"].fillna(""), strict=True)
        if slides
    }
    checksums = dict(zip(rows["features"], rows["checksum"], strict=True))
    return BagStore.open(files, resident, checksums) if files else None


def training_rows(ids: Sequence[str], train: pd.DataFrame, modality: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers [n] of those of `ids` who are in `train` (patient_id, time, event), with their time [n] and event [n]."""
    known = train.set_index("patient_id")
    rows = np.array([i for i, patient in enumerate(ids) if patient in known.index], dtype=int)
    if not len(rows):
        raise InputError(f"no patient of the training fold has {modality}")
    labels = known.loc[[ids[i] for i in rows]]
    return rows, labels["time"].to_numpy(float), labels["event"].to_numpy(int)


def group_columns(groups: pd.DataFrame, features: Sequence[str]) -> dict[str, tuple[np.ndarray, tuple[int, ...]]]:
    """grouping → (column numbers of the omics vector, group after group; group sizes), without groups of which no feature is left."""
    at = {name: i for i, name in enumerate(features)}
    table = groups.assign(column=groups["feature"].map(at)).dropna(subset="column")
    found = {}
    for grouping, part in table.groupby("grouping", sort=False):
        sizes = part.groupby("group", sort=False).size()
        found[str(grouping)] = (part["column"].to_numpy(dtype=int), tuple(int(n) for n in sizes))
    return found


def offer(raw: RawData, settings: Mapping[str, Any], train: pd.DataFrame) -> Offered:
    """The modalities of `raw` as one fold reads them; whatever is fitted is fitted on the patients of `train` (patient_id, time, event).

    settings: see `study.fold_settings`.
    """
    found = Offered(CohortData({}, {}, {}), Inputs())
    bags, vectors, groups, sizes = dict(raw.bags), {}, {}, {}
    if raw.matrix:
        values, owners, features = _omics(raw.matrix, settings["omics"], train, found)
        columns = group_columns(raw.groups, features)
        groups = {name: c for name, (c, _) in columns.items()}
        sizes = {name: n for name, (_, n) in columns.items()}
        vectors["omics"] = ({patient: i for i, patient in enumerate(owners)}, values)
    for modality, table in raw.tables.items():
        vectors[modality] = _table(modality, table, settings["table_scaling"][modality], train, found)
    if settings["bag_scaling"] == "zscore":
        bags = {modality: store.scaled_on(list(train["patient_id"])) for modality, store in bags.items()}
    found.scaling |= {name: store.scaler for name, store in bags.items() if store.scaler}
    widths = {name: block.shape[1] for name, (_, block) in vectors.items()}
    found.inputs = Inputs({m: s.width for m, s in bags.items()}, widths, sizes, settings["bins"])
    found.data = CohortData(vectors, groups, bags)
    return found


def _omics(
    matrix: OmicsMatrix, how: Mapping[str, Any], train: pd.DataFrame, found: Offered
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Scaled values [P, F] of the selected features, patients P, features F, noted in `found` with scaling and columns."""
    rows, time, event = training_rows(matrix.patients, train, "omics")
    kinds = [feature.rpartition("_")[2] for feature in matrix.features]
    chosen = Selection.fit(matrix.values[rows], time, event, how["select"]["method"], how["select"]["features"], kinds=kinds)
    values = matrix.values[:, chosen.columns]
    features = [matrix.features[i] for i in chosen.columns]
    scaler = Scaler.fit(values[rows], how["scaling"], how["clip"], how["impute"])
    found.scaling["omics"], found.columns["omics"] = scaler, features
    return scaler.transform(values), matrix.patients, features


def _table(modality: str, table: Vectors, how: Mapping[str, Any], train: pd.DataFrame, found: Offered) -> tuple[dict[str, int], np.ndarray]:
    """The scaled rows of a further table, by patient; a code that no training patient has is no column."""
    rows, _, _ = training_rows(table.patients, train, modality)
    kept = table.known_to(rows)
    values = table.values[:, kept]
    scaler = Scaler.fit(values[rows], how["scaling"], None, how["impute"])
    found.scaling[modality], found.columns[modality] = scaler, [table.columns[i] for i in kept]
    return {patient: i for i, patient in enumerate(table.patients)}, scaler.transform(values)
