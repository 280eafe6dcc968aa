"""A person with own tables: the template's way works, and each fault is answered with the place and the remedy."""

import gzip
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tests.workflow.conftest import ROOT, run

from pipeline.demo.tables import write_tables

COHORT = {
    "title": "Own data",
    "endpoints": {"os": {"table": "clinical.tsv", "time": "time_months", "event": "event"}},
    "omics": {
        "tables": [{"file": "expression.tsv.gz", "kind": "rnaseq"}],
        "groups": {"families": {"file": "families.tsv"}},
    },
    "splits": {"folds": 2},
    "models": ["snn", "abmil"],
    "training": {"epochs": 1},
    "evaluation": {"bootstrap": 100},
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that runs `results/mine/…` on tables of our own, after a change to the tables or to the cohort's file."""
    data, config = tmp_path / "data", tmp_path / "config"
    write_tables(data, patients=24)
    shutil.copytree(ROOT / "config", config)
    monkeypatch.setenv("SLIDE2SURV_CONFIG", str(config))

    def go(spoil=None, cohort=None, target="results/mine/summary.tsv", fails=True) -> str:
        (config / "cohorts" / "mine.yaml").write_text(yaml.safe_dump({**COHORT, **(cohort or {})}))
        if spoil:
            spoil(data)
        return run(tmp_path, "--config", f"data_dir={data}", "--", target, fails=fails)

    return go


def edit(table: str, change):
    """A fault: `change` edits the lines (cells) of a TSV in place."""

    def spoil(data: Path) -> None:
        path = data / table
        opened = gzip.open if table.endswith(".gz") else open
        with opened(path, "rt") as handle:
            lines = [line.rstrip("\n").split("\t") for line in handle]
        change(lines)
        with opened(path, "wt") as handle:
            handle.writelines("\t".join(cells) + "\n" for cells in lines)

    return spoil


def cell(row: int, column: str, value: str):
    """Put `value` into a cell; rows as an editor counts them."""

    def change(lines: list[list[str]]) -> None:
        lines[row - 1][lines[0].index(column)] = value

    return change


@pytest.mark.slow
def test_own_tables_give_a_summary_that_says_what_was_not_run_and_who_lacks_a_time(own, tmp_path):
    """One run for both: a missing time excludes that patient alone."""
    own(edit("clinical.tsv", cell(3, "time_months", "")), fails=False)
    excluded = pd.read_csv(tmp_path / "results/mine/excluded.tsv", sep="\t")
    assert excluded["reason"].str.contains("clinical.tsv, row 3, column 'time_months'").sum() == 1
    table = pd.read_csv(tmp_path / "results/mine/summary.tsv", sep="\t").set_index("model")
    assert table.loc["snn", "folds"] == 2
    assert table.loc["abmil", "note"] == "not run: needs slides, which cohort mine lacks (its file names no slides.folder)"


FAULTS = {
    "event": (edit("clinical.tsv", cell(4, "event", "2")), r"clinical.tsv, row 4, column 'event': .*found '2', expected"),
    "negative time": (edit("clinical.tsv", cell(5, "time_months", "-3")), r"clinical.tsv, row 5, column 'time_months': .*found '-3'"),
    "duplicate": (
        edit("clinical.tsv", lambda lines: lines.append(lines[2])),
        r"row 26, column 'patient_id': patient appears twice \(first in row 3\); found 'DEMO-\d+', expected one row a patient",
    ),
    "path as id": (
        edit("clinical.tsv", cell(3, "patient_id", "../etc")),
        r"row 3, column 'patient_id': not a usable patient id; found '../etc'",
    ),
    "text as expression": (
        edit("expression.tsv.gz", cell(6, "GENE0007", "high")),
        r"expression.tsv.gz, row 6, column 'GENE0007': .*found 'high', expected",
    ),
    "absent gene sets": (
        lambda data: (data / "families.tsv").unlink(),
        r"families.tsv: no such gene-set file; expected a GMT, TSV or CSV file",
    ),
    "no event in a fold": (
        edit("clinical.tsv", lambda lines: [line.__setitem__(lines[0].index("event"), "0") for line in lines[1:]]),
        r"expected .*event",
    ),
}


# Two go through Snakemake in `make test` as well; what each message says is tested beside the code that writes it.
FAST = {"event", "absent gene sets"}


@pytest.mark.parametrize("fault", [pytest.param(fault, marks=() if fault in FAST else pytest.mark.slow) for fault in FAULTS])
def test_bad_input_is_answered_with_file_row_column_and_expectation(own, fault):
    spoil, message = FAULTS[fault]
    text = own(spoil)
    assert re.search(message, text), text[-3000:]
    assert "Traceback (most recent call last)" not in text.partition("Logfile")[0]


def test_a_misspelt_encoder_names_the_nearest(own, tmp_path):
    slides = tmp_path / "data" / "slides"
    slides.mkdir(parents=True, exist_ok=True)
    (slides / "DEMO-001.svs").touch()
    cohort = {"slides": {"folder": "slides", "encoder": "resnet5", "chunks": 1}}
    text = own(cohort=cohort, target="results/mine/slides/manifest-resnet5.tsv")
    assert "rule tissue" not in text
    assert re.search(r"unknown encoder; found 'resnet5'.*Did you mean 'resnet50'\?", text), text[-2000:]
