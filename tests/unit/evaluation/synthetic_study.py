"""A study on disk as training leaves it: a cohort of exponential survival times and models that see them through noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from pipeline.evaluation.concordance import harrell
from pipeline.tables import write_table

EDGES = (12.0, 24.0, 48.0, 120.0)


class Study:
    """Writes patients, splits and models under `root`; `folder(model, k)` is where a fold lies."""

    def __init__(self, root: Path, *, patients: int = 150, folds: int = 3, seed: int = 0) -> None:
        self.root, self.k = root, folds
        rng = np.random.default_rng(seed)
        self.hazard = rng.normal(size=patients)
        death, censored = rng.exponential(40 * np.exp(-self.hazard)), rng.uniform(5, 110, patients)
        self.table = pd.DataFrame({"patient_id": [f"P{i:03d}" for i in range(patients)]})
        self.table["time"], self.table["event"] = np.round(np.minimum(death, censored), 2) + 0.01, (death <= censored).astype(int)
        self.table["has_wsi"], self.table["has_omics"] = 1, (rng.random(patients) < 0.8).astype(int)
        self.fold = np.arange(patients) % folds
        rows = [(k, p, "test" if f == k else "train") for k in range(folds) for p, f in zip(self.table.patient_id, self.fold, strict=True)]
        self.patients, self.splits = root / "cohort/patients.tsv", root / "cohort/splits.tsv"
        write_table(self.table, self.patients)
        write_table(pd.DataFrame(rows, columns=["fold", "patient_id", "set"]), self.splits)

    def folder(self, model: str, fold: int) -> Path:
        return self.root / model / f"fold{fold}"

    def folders(self, model: str) -> list[Path]:
        return [self.folder(model, k) for k in range(self.k)]

    def add_model(self, model: str, *, signal: float = 1.0, seed: int = 1, drop: tuple[str, ...] = (), **settings: object) -> list[Path]:
        """Write predictions, history and settings of every fold; the patients `drop` are not predicted."""
        rng = np.random.default_rng(seed)
        for k in range(self.k):
            risk = signal * self.hazard + rng.normal(size=len(self.hazard))
            surv = np.exp(-np.array(EDGES) / 40 * np.exp(np.clip(risk, -3, 3))[:, None])
            table = self.table[["patient_id", "time", "event"]].assign(risk=risk)
            table[[f"surv_{edge:g}" for edge in EDGES]] = surv
            table = table[(self.fold == k) & ~table.patient_id.isin(drop)]
            write_table(table, self.folder(model, k) / "predictions.tsv")
            epochs = np.arange(1, 21)
            final = harrell(*table[["time", "event", "risk"]].to_numpy().T).value
            test = 0.5 + (final - 0.5) * (1 - np.exp((1 - epochs) / 4)) / (1 - np.exp(-19 / 4))
            test[1:-1] += rng.normal(scale=0.02, size=18)
            loss = 1.2 + 0.8 * np.exp(-epochs / 6) + rng.normal(scale=0.02, size=20)
            history = {"epoch": epochs, "train_loss": loss, "inner_c_index": np.nan, "test_c_index": test}
            write_table(pd.DataFrame(history), self.folder(model, k) / "history.tsv")
            lost = {p: "lacks omics" for p in drop}
            known = {"failure": None, "unpredicted": lost, "params": 123456, "train_seconds": 7.5, "selection": "last"}
            known["modalities"] = ["wsi", "omics"]
            (self.folder(model, k) / "model.yaml").write_text(yaml.safe_dump(known | settings))
        return self.folders(model)

    def change(self, model: str, fold: int, **settings: object) -> None:
        """Overwrite keys of one fold's model.yaml."""
        path = self.folder(model, fold) / "model.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
