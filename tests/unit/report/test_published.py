from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.errors import InputError
from pipeline.evaluation.summary import COLUMNS as SUMMARY
from pipeline.report.published import COLUMNS, write_published
from pipeline.tables import write_table

CONFIG = Path(__file__).parents[3] / "config"
ENTRY = {"model": "snn", "endpoint": "os", "source": "A | B, Table 1", "protocol": "best epoch"}


def entries(*figures: tuple[str, dict], **changes: object) -> dict:
    return {"published": [ENTRY | {"cohorts": dict(figures)} | changes]}


@pytest.fixture
def summary(tmp_path: Path) -> Path:
    ours = {"model": "snn", "endpoint": "os", "folds": 5, "patients": 373, "c_index": 0.58, "c_index_ci_low": 0.53, "c_index_ci_high": 0.63}
    ours |= {"c_index_best_epoch": 0.64, "c_index_shuffled": 0.51, "noise_floor": 0.544, "note": ""}
    rows = [ours, {"model": "mcat", "endpoint": "os", "note": "not run: needs slides"}]
    write_table(pd.DataFrame(rows).reindex(columns=list(SUMMARY)), tmp_path / "blca/summary.tsv")
    return tmp_path / "blca/summary.tsv"


def published(rows: dict, summaries: dict[str, Path], folder: Path) -> tuple[pd.DataFrame, str]:
    write_published(rows, summaries, folder / "p.tsv", folder / "p.md")
    return pd.read_csv(folder / "p.tsv", sep="\t"), (folder / "p.md").read_text()


@pytest.mark.parametrize("mean, sd, verdict", [(0.618, 0.022, "yes"), (0.6, 0.039, "no"), (0.65, 0.011, "yes"), (0.6, None, None)])
def test_the_habit_is_compared_with_one_published_standard_deviation(mean: float, sd: float | None, verdict: str | None, summary, tmp_path):
    table, _ = published(entries(("blca", {"mean": mean, "sd": sd})), {"blca": summary}, tmp_path)
    assert tuple(table.columns) == COLUMNS
    row = table.iloc[0]
    ours = row[["habit", "honest", "ci_low", "ci_high", "shuffled", "noise_floor", "patients"]]
    assert list(ours) == [0.64, 0.58, 0.53, 0.63, 0.51, 0.544, 373]
    assert (row.within_sd if verdict else None) == verdict
    assert pd.isna(row.within_sd) == (verdict is None)


def test_what_was_not_run_is_a_row_with_dashes(summary: Path, tmp_path: Path):
    figures = entries(("blca", {"mean": 0.618, "sd": 0.022}), ("luad", {"mean": 0.611}), ("ucec", {"mean": 0.679, "sd": 0.04}))
    table, text = published(figures, {"blca": summary, "luad": tmp_path / "luad/summary.tsv"}, tmp_path)
    assert list(table.cohort) == ["blca", "luad", "ucec"]
    assert table.habit.isna().tolist() == [False, True, True]
    assert table.note.tolist()[1:] == ["best epoch; cohort not run here"] * 2
    lines = [line for line in text.splitlines() if line.startswith("| A")]
    assert lines[0] == r"| A \| B, Table 1 | blca | snn | 373 | 0.618 ± 0.022 | 0.640 | 0.580 | 0.530–0.630 | 0.510 | 0.544 | yes |"
    assert lines[1] == r"| A \| B, Table 1 | luad | snn | – | 0.611 | – | – | – | – | – | – |"


def test_every_line_of_the_markdown_table_has_as_many_cells(summary: Path, tmp_path: Path):
    _, text = published(entries(("blca", {"mean": 0.6}), model="a|b", protocol="x\ny | z"), {"blca": summary}, tmp_path)
    lines = [line.replace(r"\|", "") for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {12}
    assert r"- A \| B, Table 1 (a\|b on blca): x y \| z; model without a figure here." in text


def test_figures_of_another_endpoint_are_not_put_side_by_side(summary: Path, tmp_path: Path):
    table, _ = published(entries(("blca", {"mean": 0.6, "sd": 0.1}), endpoint="dss"), {"blca": summary}, tmp_path)
    assert pd.isna(table.habit[0])
    assert pd.isna(table.within_sd[0])
    assert table.note[0] == "best epoch; not comparable: published is dss, ours is os"


def test_a_model_that_was_not_run_and_other_patients_are_told(summary: Path, tmp_path: Path):
    table, _ = published(entries(("blca", {"mean": 0.6}), model="mcat"), {"blca": summary}, tmp_path)
    assert table.note[0] == "best epoch; model without a figure here"
    table, _ = published(entries(("blca", {"mean": 0.6, "n": 359})), {"blca": summary}, tmp_path)
    assert table.note[0] == "best epoch; published on 359 patients"


def test_an_honest_figure_that_is_none_is_told(summary: Path, tmp_path: Path):
    table = pd.read_csv(summary, sep="\t", dtype=str, keep_default_na=False)
    table.loc[0, "note"] = "epoch chosen on the test fold (best_val) in fold 0: c_index is optimistic"
    write_table(table, summary)
    rows, _ = published(entries(("blca", {"mean": 0.6})), {"blca": summary}, tmp_path)
    assert rows.note[0] == "best epoch; our own epoch was chosen on the test fold: honest is optimistic"


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"figures": []}, "published figures are no list"),
        ({"published": [{"model": "snn"}]}, r"entry 1 of the published figures lacks 'cohorts'"),
        (entries(("blca", {"sd": 0.1})), r"entry 1 of the published figures, cohort blca lacks 'mean'"),
        (entries(("blca", {"mean": 0.6, "std": 0.1})), r"cohort blca has an unknown key; found 'std'.*Did you mean 'sd'\?"),
        (entries(("blca", {"mean": "0,6"})), r"cohort blca: 'mean' is not a number; found '0,6'"),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(rows: dict, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        write_published(rows, {}, tmp_path / "p.tsv", tmp_path / "p.md")


@pytest.mark.parametrize("file", sorted((CONFIG / "papers").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_published_figures_we_hold_are_readable_and_possible(file: Path, tmp_path: Path):
    rows = yaml.safe_load(file.read_text())
    table, _ = published(rows, {}, tmp_path)
    assert table.published.between(0.4, 0.95).all()
    assert np.nanmax(table.published_sd) < 0.2
    assert not table.duplicated(["source", "cohort", "model"]).any()
    known = {path.stem for path in (CONFIG / "models").glob("*.yaml")}
    variants = {name: yaml.safe_load((CONFIG / f"models/{name}.yaml").read_text()).get("variants", {}) for name in known}
    for model in table.model[table.model != "gpdbn"]:
        name, _, variant = model.partition("+")
        assert name in known
        assert not variant or variant in variants[name]
