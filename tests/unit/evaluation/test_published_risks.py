"""Our C-index on the published risks of Pathomic Fusion gives the published figures to four digits (real data, nothing is trained)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit

from pipeline.evaluation.concordance import harrell
from pipeline.tables import numeric, read_table

GBMLGG = {
    "omic": (0.8081, 0.014),
    "path": (0.7921, 0.014),
    "graph": (0.7464, 0.022),
    "pathomic_fusion": (0.8202, 0.009),
    "graphomic_fusion": (0.8121, 0.010),
    "pathgraphomic_fusion": (0.8258, 0.009),
}
GBMLGG_ALL = {"path": (0.7496, 0.010), "graph": (0.7221, 0.014)}
KIRC = {
    "omic": (0.6843, 0.025),
    "path": (0.6706, 0.023),
    "graph": (0.6482, 0.031),
    "pathomic_fusion": (0.7188, 0.031),
    "graphomic_fusion": (0.6853, 0.024),
    "pathgraphomic_fusion": (0.7203, 0.028),
}


def published(folder: Path, keep: str | None) -> pd.DataFrame:
    """Test risks with follow-up, of the patients who have something in column `keep` (``has_omic320``: a 1)."""
    pytest.importorskip("pyarrow")
    file = folder / "patients.tsv"
    patients = read_table(file, ["time_months", "event"], patient_id="patient_id")
    patients[["time_months", "event"]] = numeric(patients, ["time_months", "event"], file, allow_missing=False)
    if keep:
        patients = patients[patients[keep].notna() & (patients[keep] != "0")]
    risks = pd.read_parquet(folder / "pathomic_fusion_risks.parquet")
    return risks[risks.split == "test"].merge(patients, on="patient_id")


def mean_and_half_width(table: pd.DataFrame) -> tuple[float, float]:
    c = np.array(
        [harrell(fold.time_months.to_numpy(), fold.event.to_numpy(), fold.risk.to_numpy()).value for _, fold in table.groupby("fold")]
    )
    assert len(c) == 15
    return c.mean(), stdtrit(14, 0.975) * c.std(ddof=1) / np.sqrt(15)


@pytest.mark.realdata
@pytest.mark.parametrize(
    "cohort, keep, figures",
    [("gbmlgg", "has_omic320", GBMLGG), ("gbmlgg", None, GBMLGG_ALL), ("kirc", "clin_grade", KIRC)],
    ids=["GBMLGG 502", "GBMLGG 769", "KIRC 415"],
)
def test_published_c_indices_are_recomputed_to_four_digits(realdata: Path, cohort: str, keep: str | None, figures: dict):
    table = published(realdata / f"pathomic_{cohort}", keep)
    for model, (c, half_width) in figures.items():
        ours = mean_and_half_width(table[table.model == model])
        assert (model, round(ours[0], 4), round(ours[1], 3)) == (model, c, half_width)
