"""Nothing of a test patient reaches training, no order of rows reaches a result, and permuted labels predict nothing."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import study as studies
from pipeline.cohort.patients import build_cohort
from pipeline.cohort.splits import build_splits
from pipeline.config import fill_defaults, merge, schema
from pipeline.demo.tables import write_tables
from pipeline.evaluation.model import evaluate_model
from pipeline.omics.groups import build_groups
from pipeline.omics.matrix import build_matrix
from pipeline.tables import read_table, write_table
from pipeline.training.dataset import RawData
from pipeline.training.fold import train_fold

STUDY = {
    "name": "leaks",
    "seed": 1,
    "data_dir": "",
    "synthetic": False,
    "title": "Leaks",
    "omics": {"tables": [{"file": "expression.tsv.gz", "kind": "rnaseq"}], "groups": {"families": {"file": "families.tsv"}}},
    "tables": {"clinical": {"file": "clinical.tsv", "columns": ["age", "sex", "stage"]}},
    "endpoints": {"os": {"table": "clinical.tsv", "time": "time_months", "event": "event"}},
    "splits": {"folds": 2},
    "models": ["snn"],
    "training": {"epochs": 3},
}
SELECTED = {"omics": {"select": {"method": "univariate", "features": 40}}}


class Tables:
    """A small cohort on disk, prepared as the rules prepare it, and trained as they train it."""

    def __init__(self, folder: Path, patients: int = 40) -> None:
        self.data, self.folder = folder / "data", folder
        write_tables(self.data, patients=patients)
        (folder / "cohort").mkdir(parents=True)

    def study(self, **changes) -> dict:
        return fill_defaults(merge({**STUDY, "data_dir": str(self.data)}, changes), schema("cohort"))

    def prepare(self, splits: Path | None = None) -> None:
        study, cohort = self.study(), self.folder / "cohort"
        build_matrix(studies.omics_tables(study), self.folder / "omics.h5", cohort / "tables.tsv")
        build_groups(self.folder / "omics.h5", studies.groupings(study), cohort / "groups.tsv", cohort / "coverage.tsv")
        tables = {name: cohort / f"{name}.tsv" for name in ("patients", "flow", "excluded")}
        build_cohort(studies.endpoint(study), omics=self.folder / "omics.h5", vectors=studies.tables(study), **tables)
        if splits:
            (cohort / "splits.tsv").write_bytes(splits.read_bytes())
        else:
            build_splits(cohort / "patients.tsv", studies.splits(study), cohort / "splits.tsv", seed=1)

    def train(self, model: str, fold: int = 0, **changes) -> Path:
        cohort, folder = self.folder / "cohort", self.folder / model / f"fold{fold}"
        folder.mkdir(parents=True)
        files = {"patients": cohort / "patients.tsv", "splits": cohort / "splits.tsv", "matrix": self.folder / "omics.h5"}
        files |= {"groups": cohort / "groups.tsv", "manifest": None, "bags": {}}
        shuffled = changes.pop("shuffled", None)
        settings = studies.fold_settings(self.study(**changes), model) | ({} if shuffled is None else {"shuffled": shuffled})
        train_fold(settings=settings, fold=fold, raw=RawData.read(files, settings), folder=folder, code="test", key="test")
        return folder

    def evaluate(self, model: str, folders: list[Path], seed: int = 1) -> Path:
        cohort, row = self.folder / "cohort", self.folder / model / "evaluation.tsv"
        files = {"patients": cohort / "patients.tsv", "splits": cohort / "splits.tsv", "output": row, "calibration": row.with_name("c.tsv")}
        evaluate_model(cohort="leaks", model=model, endpoint="os", folds=folders, bootstrap=500, seed=seed, **files)
        return row

    def outputs(self) -> dict[str, bytes]:
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file() and self.data not in path.parents]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


def rewrite(path: Path, change) -> None:
    """`change` a table, read as text, in place."""
    table = read_table(path)
    write_table(change(table), path)


@pytest.mark.parametrize("model", ["snn", "snntrans", "coxnet", "rsf", "coxnet+clinical"])
def test_a_test_patient_changes_nothing_that_is_fitted(tmp_path, model):
    """Features, clinical values and follow-up of every test patient are replaced: weights, scalers, bins and selection keep their bytes."""
    first, second = Tables(tmp_path / "a"), Tables(tmp_path / "b")
    first.prepare()
    splits = first.folder / "cohort" / "splits.tsv"
    table = read_table(splits)
    tested = set(table.patient_id[(table.fold == "0") & (table.set == "test")])

    def disturb(table: pd.DataFrame) -> pd.DataFrame:
        rows = table["patient_id"].isin(tested)
        for column in [c for c in table if c not in ("patient_id", "event", "site")]:
            table.loc[rows, column] = [str(7 + i % 5) for i in range(rows.sum())]
        if "event" in table:
            table.loc[rows, "event"] = ["1", "0"] * (rows.sum() // 2) + ["1"] * (rows.sum() % 2)
        return table

    for name in ("expression.tsv.gz", "clinical.tsv"):
        rewrite(second.data / name, disturb)
    second.prepare(splits)
    a, b = (tables.train(model, **SELECTED) for tables in (first, second))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert (a / "model.yaml").read_text() == (b / "model.yaml").read_text()
    assert (a / "predictions.tsv").read_bytes() != (b / "predictions.tsv").read_bytes()
    assert yaml.safe_load((a / "model.yaml").read_text())["failure"] is None


def test_a_code_that_only_test_patients_have_changes_nothing_that_is_fitted(tmp_path):
    first, second = Tables(tmp_path / "a"), Tables(tmp_path / "b")
    first.prepare()
    table = read_table(first.folder / "cohort" / "splits.tsv")
    tested = table.patient_id[(table.fold == "0") & (table.set == "test")]
    rewrite(second.data / "clinical.tsv", lambda t: t.assign(stage=t.stage.where(~t.patient_id.isin(tested), "9")))
    second.prepare(first.folder / "cohort" / "splits.tsv")
    coded = {"tables": {"clinical": {"categorical": ["stage"]}}}
    for model in ("tabular_mlp", "coxnet+clinical"):
        a, b = (tables.train(model, **coded) for tables in (first, second))
        assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
        assert (a / "model.yaml").read_text() == (b / "model.yaml").read_text()
        assert "stage=9" not in (b / "model.yaml").read_text()


def test_the_order_of_rows_changes_no_output_byte(tmp_path):
    """The rows of all tables and of the gene sets are shuffled; every file that is made keeps its bytes."""
    first, second = Tables(tmp_path / "a"), Tables(tmp_path / "b")
    for number, name in enumerate(("clinical.tsv", "expression.tsv.gz", "families.tsv")):
        rewrite(second.data / name, lambda table, seed=number: table.sample(frac=1, random_state=seed))
    for tables in (first, second):
        tables.prepare()
        for model in ("snn", "snntrans", "coxnet", "rsf", "coxnet+clinical"):
            folders = [tables.train(model, fold, **SELECTED) for fold in range(2)]
            tables.evaluate(model, folders)
    a, b = first.outputs(), second.outputs()
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []
    assert len([name for name in a if name.endswith("model.safetensors")]) == 10


@pytest.mark.parametrize("cohorts, least", [pytest.param(6, 4, marks=pytest.mark.slow), pytest.param(20, 16, marks=pytest.mark.long)])
def test_permuted_labels_give_intervals_around_one_half_at_the_nominal_rate(tmp_path, cohorts, least):
    """Features that know nothing, cohorts of 200: the 95 % interval holds 0.5 in 16 of 20 or more, 4 of 6 (binomial: 99.7, 99.8 %)."""
    rng = np.random.default_rng(5)
    covered = 0
    for repetition in range(cohorts):
        tables = Tables(tmp_path / str(repetition), patients=200)
        with gzip.open(tables.data / "expression.tsv.gz", "rt") as handle:
            columns = handle.readline().rstrip("\n").split("\t")[:41]
        ids = read_table(tables.data / "clinical.tsv").patient_id
        noise = pd.DataFrame(rng.normal(size=(len(ids), 40)).round(4), columns=columns[1:])
        write_table(pd.concat([ids, noise], axis=1), tables.data / "expression.tsv.gz")
        rewrite(tables.data / "families.tsv", lambda table, kept=columns: table[table["gene"].isin(kept)])
        tables.prepare()
        folders = [tables.train("snn", fold, shuffled=repetition) for fold in range(2)]
        row = read_table(tables.evaluate("snn", folders, seed=repetition)).iloc[0]
        covered += float(row.c_index_ci_low) <= 0.5 <= float(row.c_index_ci_high)
    print(f"{covered} of {cohorts} intervals hold 0.5")
    assert covered >= least
