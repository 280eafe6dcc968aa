"""From a cohort's files to what one fold's model reads; everything fitted is fitted on the training patients alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cohort.bags import open_bag_store
from pipeline.cohort.loader import BagStore, CohortData
from pipeline.cohort.vectors import read_vectors
from pipeline.errors import InputError
from pipeline.models.interface import Inputs
from pipeline.omics.matrix import read_matrix
from pipeline.omics.scaling import Scaler
from pipeline.omics.selection import Selection
from pipeline.tables import read_table


@dataclass
class Offered:
    """`data` for the loop, `inputs` for the model; `scaling` and `columns` by modality for whoever uses the model later."""

    data: CohortData
    inputs: Inputs
    scaling: dict[str, Scaler] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)


def load_bags(manifest: Path, patients: pd.DataFrame) -> BagStore:
    """Every patient's feature files, as the cohort's table lists his slides."""
    rows = read_table(manifest, ["slide_id", "status", "features"])
    paths = dict(zip(rows["slide_id"], rows["features"], strict=True))
    files = {
        patient: [paths[slide] for slide in slides.split(";")]
        for patient, slides in zip(patients["patient_id"], patients["slides"].fillna(""), strict=True)
        if slides
    }
    if not files:
        raise InputError("no patient of the cohort has features", file=manifest)
    return BagStore.open(files)


def training_rows(ids: Sequence[str], train: pd.DataFrame, modality: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers [n] of those of `ids` who are in `train` (patient_id, time, event), with their time [n] and event [n]."""
    known = train.set_index("patient_id")
    rows = np.array([i for i, patient in enumerate(ids) if patient in known.index], dtype=int)
    if not len(rows):
        raise InputError(f"no patient of the training fold has {modality}")
    labels = known.loc[[ids[i] for i in rows]]
    return rows, labels["time"].to_numpy(float), labels["event"].to_numpy(int)


def group_columns(groups: Path, features: Sequence[str]) -> dict[str, tuple[np.ndarray, tuple[int, ...]]]:
    """grouping → (column numbers of the omics vector, group after group; group sizes), without groups of which no feature is left."""
    table = read_table(groups, ["grouping", "group", "feature"])
    at = {name: i for i, name in enumerate(features)}
    table = table.assign(column=table["feature"].map(at)).dropna(subset="column")
    found = {}
    for grouping, part in table.groupby("grouping", sort=False):
        sizes = part.groupby("group", sort=False).size()
        found[str(grouping)] = (part["column"].to_numpy(dtype=int), tuple(int(n) for n in sizes))
    return found


def offer(
    files: Mapping[str, Any], settings: Mapping[str, Any], wanted: Sequence[str], patients: pd.DataFrame, train: pd.DataFrame
) -> Offered:
    """Load the modalities `wanted` of the cohort; whatever is fitted is fitted on the patients of `train` (patient_id, time, event).

    files: `matrix`, `groups`, `manifest` (a path or None), `bags` (modality → path). settings: see `study.fold_settings`.
    """
    found = Offered(CohortData({}, {}, {}), Inputs())
    bags, vectors, groups, sizes = {}, {}, {}, {}
    for modality in wanted:
        if modality == "wsi":
            bags[modality] = load_bags(files["manifest"], patients)
        elif modality in files["bags"]:
            bags[modality] = open_bag_store(files["bags"][modality])
        elif modality == "omics":
            values, owners, features = _omics(files["matrix"], settings["omics"], train, found)
            columns = group_columns(files["groups"], features)
            groups = {name: c for name, (c, _) in columns.items()}
            sizes = {name: n for name, (_, n) in columns.items()}
            vectors[modality] = ({patient: i for i, patient in enumerate(owners)}, values)
        else:
            vectors[modality] = _table(modality, settings, train, found)
    if settings["bag_scaling"] == "zscore":
        for store in bags.values():
            store.fit_scaling(list(train["patient_id"]))
    found.scaling |= {name: store.scaler for name, store in bags.items() if store.scaler}
    widths = {name: block.shape[1] for name, (_, block) in vectors.items()}
    found.inputs = Inputs({m: s.width for m, s in bags.items()}, widths, sizes, settings["bins"])
    found.data = CohortData(vectors, groups, bags)
    return found


def _omics(file: Path, how: Mapping[str, Any], train: pd.DataFrame, found: Offered) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Scaled values [P, F] of the selected features, patients P, features F; notes scaling and columns in `found`."""
    matrix = read_matrix(file)
    rows, time, event = training_rows(matrix.patients, train, "omics")
    kinds = [feature.rpartition("_")[2] for feature in matrix.features]
    chosen = Selection.fit(matrix.values[rows], time, event, how["select"]["method"], how["select"]["features"], kinds=kinds)
    values = matrix.values[:, chosen.columns]
    features = [matrix.features[i] for i in chosen.columns]
    scaler = Scaler.fit(values[rows], how["scaling"], how["clip"], how["impute"])
    found.scaling["omics"], found.columns["omics"] = scaler, features
    return scaler.transform(values), matrix.patients, features


def _table(modality: str, settings: Mapping[str, Any], train: pd.DataFrame, found: Offered) -> tuple[dict[str, int], np.ndarray]:
    """The scaled rows of a further table, by patient; a code that no training patient has is no column."""
    table, how = read_vectors(**settings["tables"][modality]), settings["table_scaling"][modality]
    rows, _, _ = training_rows(table.patients, train, modality)
    kept = table.known_to(rows)
    values = table.values[:, kept]
    scaler = Scaler.fit(values[rows], how["scaling"], None, how["impute"])
    found.scaling[modality], found.columns[modality] = scaler, [table.columns[i] for i in kept]
    return {patient: i for i, patient in enumerate(table.patients)}, scaler.transform(values)
