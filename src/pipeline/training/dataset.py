"""From a cohort's files to what one fold's model reads; everything fitted is fitted on the training patients alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cohort.loader import BagStore, CohortData
from pipeline.cohort.vectors import read_vectors
from pipeline.errors import InputError
from pipeline.models.interface import Inputs
from pipeline.omics.matrix import read_matrix
from pipeline.omics.scaling import Scaler
from pipeline.tables import read_table


@dataclass
class Offered:
    """`data` for the loop, `inputs` for the model; `scaling` and `columns` by modality for whoever uses the model later."""

    data: CohortData
    inputs: Inputs
    scaling: dict[str, Scaler] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)


def load_bags(manifest: Path, patients: pd.DataFrame, train: Sequence[str], scaling: str) -> BagStore:
    """Every patient's feature files, as the cohort's table lists his slides; `scaling` is `none` or `zscore`."""
    rows = read_table(manifest, ["slide_id", "status", "features"])
    paths = dict(zip(rows["slide_id"], rows["features"], strict=True))
    files = {
        patient: [paths[slide] for slide in slides.split(";")]
        for patient, slides in zip(patients["patient_id"], patients["slides"].fillna(""), strict=True)
        if slides
    }
    if not files:
        raise InputError("no patient of the cohort has features", file=manifest)
    store = BagStore.open(files)
    if scaling == "zscore":
        store.fit_scaling(train)
    return store


def fit_vector(values: np.ndarray, ids: Sequence[str], train: Sequence[str], scaling: Mapping[str, Any]) -> Scaler:
    """A scaler of rows [P, d], fitted on those of `train`; `scaling` holds `method` and `clip`."""
    known = set(train)
    rows = np.array([i for i, patient in enumerate(ids) if patient in known], dtype=int)
    if not len(rows):
        raise InputError("no patient of the training fold has this modality")
    return Scaler.fit(values[rows], scaling["method"], scaling["clip"])


def group_columns(groups: Path, features: Sequence[str]) -> dict[str, tuple[np.ndarray, tuple[int, ...]]]:
    """grouping → (column numbers of the omics vector, group after group; group sizes)."""
    table = read_table(groups, ["grouping", "group", "feature"])
    at = {name: i for i, name in enumerate(features)}
    found = {}
    for grouping, part in table.groupby("grouping", sort=False):
        sizes = part.groupby("group", sort=False).size()
        found[str(grouping)] = (part["feature"].map(at).to_numpy(dtype=int), tuple(int(n) for n in sizes))
    return found


def offer(
    files: Mapping[str, Any], settings: Mapping[str, Any], wanted: Sequence[str], patients: pd.DataFrame, train: list[str]
) -> Offered:
    """Load the modalities `wanted` of the cohort.

    files: `matrix`, `groups`, `manifest` (a path or None). settings: see `study.fold_settings`. `train`: ids of the training side.
    """
    bags, vectors, groups, sizes, tables = {}, {}, {}, {}, {}
    scaling: dict[str, Scaler] = {}
    if "wsi" in wanted:
        bags["wsi"] = load_bags(files["manifest"], patients, train, settings["bag_scaling"])
        scaling |= {"wsi": bags["wsi"].scaler} if bags["wsi"].scaler else {}
    if "omics" in wanted:
        matrix = read_matrix(files["matrix"])
        tables["omics"] = (matrix.values, matrix.patients, matrix.features)
        columns = group_columns(files["groups"], matrix.features)
        groups = {name: c for name, (c, _) in columns.items()}
        sizes = {name: n for name, (_, n) in columns.items()}
    tables |= {name: _clinical(settings["tables"][name]) for name in wanted if name in settings["tables"]}
    for name, (values, ids, _) in tables.items():
        scaling[name] = fit_vector(values, ids, train, settings["scaling"])
        vectors[name] = ({patient: i for i, patient in enumerate(ids)}, scaling[name].transform(values))
    widths = {name: block.shape[1] for name, (_, block) in vectors.items()}
    inputs = Inputs({m: s.width for m, s in bags.items()}, widths, sizes, settings["bins"])
    return Offered(CohortData(vectors, groups, bags), inputs, scaling, {name: list(columns) for name, (_, _, columns) in tables.items()})


def _clinical(table: Mapping[str, Any]) -> tuple[np.ndarray, list[str], list[str]]:
    vectors = read_vectors(table["file"], table.get("columns"), patient_id=table["patient_id"])
    return vectors.values, list(vectors.patients), list(vectors.columns)
