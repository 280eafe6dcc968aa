"""A cohort that is prepared as the rules prepare it, in this process: forty patients with slides and genes, two folds."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import study as studies
from pipeline.cohort.patients import build_cohort
from pipeline.cohort.splits import build_splits
from pipeline.config import fill_defaults, schema
from pipeline.demo.tables import write_tables
from pipeline.omics.groups import build_groups
from pipeline.omics.matrix import build_matrix
from pipeline.slides.features import write_features
from pipeline.slides.sealing import sealed_checksum
from pipeline.tables import read_table, write_table
from pipeline.training.dataset import RawData
from pipeline.training.fold import train_fold

STUDY = {
    "name": "lacking",
    "title": "Lacking",
    "seed": 1,
    "data_dir": "",
    "file": "config/cohorts/lacking.yaml",
    "synthetic": True,
    "omics": {
        "tables": [{"file": "expression.tsv.gz", "kind": "rnaseq"}],
        "groups": {"families": {"file": "families.tsv"}, "pathways": {"file": "pathways.gmt"}},
    },
    "tables": {"clinical": {"file": "clinical.tsv", "columns": ["age", "sex", "stage"]}},
    "endpoints": {"os": {"table": "clinical.tsv", "time": "time_months", "event": "event"}},
    "splits": {"folds": 2},
    "models": ["snn"],
    "training": {"epochs": 2},
    "options": {"survq": {"n_query_h": 4, "n_query_g": 3}, "snn": {"hidden": [8, 8]}},
}


class SmallCohort:
    """Forty patients on disk, five of them without a slide and three without genes; models are trained on two folds of them."""

    def __init__(self, root: Path) -> None:
        self.root, data, cohort = root, root / "data", root / "cohort"
        self.study = fill_defaults({**STUDY, "data_dir": str(data)}, schema("cohort"))
        write_tables(data, patients=40)
        cohort.mkdir(parents=True)
        build_matrix(studies.omics_tables(self.study), root / "omics.h5", cohort / "tables.tsv")
        build_groups(root / "omics.h5", studies.groupings(self.study), cohort / "groups.tsv", cohort / "coverage.tsv")
        tables = {name: cohort / f"{name}.tsv" for name in ("patients", "flow", "excluded")}
        build_cohort(studies.endpoint(self.study), omics=root / "omics.h5", vectors=studies.tables(self.study), **tables)
        patients = read_table(tables["patients"])
        self._slides(tables["patients"], patients)
        build_splits(tables["patients"], studies.splits(self.study), cohort / "splits.tsv", seed=1)
        self.files = {"patients": tables["patients"], "splits": cohort / "splits.tsv", "matrix": root / "omics.h5", "bags": {}}
        self.files |= {"groups": cohort / "groups.tsv", "manifest": root / "manifest.tsv"}

    def _slides(self, file: Path, patients: pd.DataFrame) -> None:
        rng, rows = np.random.default_rng(3), []
        slideless = set(patients["patient_id"][patients["has_omics"] == "1"][:5])
        owned = patients["patient_id"].where(~patients["patient_id"].isin(slideless))
        for patient in owned.dropna():
            path = self.root / f"{patient}.h5"
            write_features(path, rng.normal(size=(int(rng.integers(4, 9)), 8)).astype(np.float32), None, {"encoder": "noise"})
            rows.append((patient, "ok", path, sealed_checksum(path)))
        write_table(pd.DataFrame(rows, columns=["slide_id", "status", "features", "checksum"]), self.root / "manifest.tsv")
        write_table(patients.assign(slides=owned, has_wsi=owned.notna().astype(int)), file)

    def settings(self, model: str) -> dict:
        return studies.fold_settings(self.study, model)

    def raw(self, model: str) -> RawData:
        return RawData.read(self.files, self.settings(model))

    def folders(self, model: str) -> list[Path]:
        """The folds of the model, trained when they are first asked for."""
        folders = [self.root / model / f"fold{k}" for k in range(2)]
        for k, folder in enumerate(folders):
            if not folder.exists():
                folder.mkdir(parents=True)
                train_fold(settings=self.settings(model), fold=k, raw=self.raw(model), folder=folder, code="test", key="test")
        return folders
