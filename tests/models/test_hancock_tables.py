"""The five tables of HANCOCK, label y_3y: what the published calibration says of the models for tables, through the models alone."""

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.cohort.loader import CohortData
from pipeline.cohort.record import Labels
from pipeline.models import build_model, load_model_config
from pipeline.models.interface import Inputs
from pipeline.training.fold import inner_split
from pipeline.training.loop import Trainer
from pipeline.training.protocol import Protocol

TABLES = ("blood", "cell_density", "clinical", "icd", "pathological")
NOMINAL = {
    "smoking_status",
    "primary_tumor_site",
    "grading",
    "hpv_association_p16",
    "resection_status",
    "resection_status_carcinoma_in_situ",
    "histologic_type",
}


@pytest.fixture(scope="module")
def cohort(realdata):
    """The 430 patients of the published lists with their labels, and the five encoded tables with holes."""
    read = lambda name: pd.read_csv(realdata / "hancock" / f"{name}.tsv", sep="\t", dtype={"patient_id": str}).set_index("patient_id")  # noqa: E731
    listed = read("image_availability_clam_hancock")
    label = read("labels")["y_3y"]
    label = label[(label >= 0) & (listed["wsi_uni_listed"] == 1) & (listed["tma_uni_listed"] == 1)].astype(int)
    tables = {}
    for name in TABLES:
        table = read(name)
        codes = [c for c in table if c in NOMINAL]
        tables[name] = pd.get_dummies(table, columns=codes, dtype=float).astype(float)  # the list of categories is the cohort's
    return label, tables


def folds(label):
    """Stratified 10-fold: test ids of each."""
    rng = np.random.default_rng(0)
    part = pd.Series(0, index=label.index)
    for value in (0, 1):
        ids = label.index[label == value]
        part[ids[rng.permutation(len(ids))]] = np.arange(len(ids)) % 10
    return [list(label.index[part == k]) for k in range(10)]


def encoded(tables, train):
    """The cohort's data, min–max scaled and filled with the most frequent value of the training side."""
    vectors = {}
    for name, table in tables.items():
        known = table.reindex(train).dropna(how="all")
        filled = table.fillna(known.mode().iloc[0])
        low, high = filled.loc[known.index].min(), filled.loc[known.index].max()
        scaled = ((filled - low) / (high - low).replace(0, 1)).to_numpy(np.float32)
        vectors[name] = ({patient: row for row, patient in enumerate(table.index)}, scaled)
    return CohortData(vectors)


def auc(label, risk):
    from sklearn.metrics import roc_auc_score

    return roc_auc_score(label, risk)


def ten_folds(cohort, name, tmp_path):
    label, tables = cohort
    protocol = Protocol.of(load_model_config(name)["training"])
    found, right = [], []
    for k, test in enumerate(folds(label)):
        train = sorted(set(label.index) - set(test))
        data = encoded(tables, train)
        labels = lambda ids: Labels(ids, np.ones(len(ids)), label[ids].to_numpy(), np.zeros(len(ids), int), (0.0, 1.0))  # noqa: E731
        torch.manual_seed(k)
        model = build_model(name, Inputs(vectors={m: x.shape[1] for m, (_, x) in data.vectors.items()}, bins=1))
        seen = [p for p in train if data.modalities(p)], [p for p in test if data.modalities(p)]
        assert [len(ids) for ids in seen] == [len(train), len(test)]
        side, inner = (inner_split(labels(train), protocol.inner_share, k)) if protocol.selection == "inner" else (labels(train), None)
        trainer = Trainer(model, data, protocol, seed=k)
        trainer.fit(side, inner, labels(test), tmp_path / f"{k}.pt", "")
        logits = trainer.predict(test)[:, 0].numpy()
        found.append(auc(label[test], logits))
        right.append(np.mean((logits > 0) == label[test].to_numpy()))
    return float(np.mean(found)), float(np.mean(right))


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name, low, high",
    [
        pytest.param("logistic", 0.76, 0.80, marks=pytest.mark.slow),
        pytest.param("forest", 0.78, 0.82, marks=pytest.mark.slow),
        pytest.param("tabular_mlp", 0.70, 0.82, marks=pytest.mark.long),
    ],
)
def test_the_models_for_tables_reach_the_calibration(cohort, name, low, high, tmp_path):
    assert (len(cohort[0]), int(cohort[0].sum())) == (430, 84)
    assert sum(table.shape[1] for table in cohort[1].values()) == 104
    found, accuracy = ten_folds(cohort, name, tmp_path)
    assert low <= found <= high, (found, accuracy)
    assert accuracy >= 0.805 - 0.02, accuracy  # the share of the larger label is 0.805
