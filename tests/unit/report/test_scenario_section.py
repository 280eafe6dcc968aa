import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report_page import NO_FIGURES, Page, Site, images

from pipeline.errors import InputError
from pipeline.evaluation.scenarios import SCENARIO_COLUMNS
from pipeline.report.scenarios import draw_drops, draw_losses, heading, probabilities, read_scenarios, scenario_groups
from pipeline.tables import write_table

MODELS = ["snn", "mlp+wide", "coxnet+clinical"]


def scenario_rows(*drops: float, fill: str = "native") -> pd.DataFrame:
    """`mlp+wide` loses 0.1 whatever is taken, `snn` cannot go without omics, the Cox model reads neither."""
    names = ["complete", "without omics", *(f"drop {p:g}" for p in drops)]
    rows = []
    for model in MODELS:
        for name in names:
            c = 0.7 - 0.1 * (model == "mlp+wide" and name != "complete")
            row = dict(zip(("c_index", "c_index_std", "ci_low", "ci_high"), (c, 0.05, c - 0.1, c + 0.1), strict=True))
            row |= {"model": model, "scenario": name, "fill": fill, "draws": 10 if name.startswith("drop") else 1}
            row |= {"patients": 80, "unpredicted": 10, "folds": 3, "note": "without a prediction: lacks omics"}
            if name != "complete":
                row |= {"complete": 0.7, "difference": c - 0.7, "difference_ci_low": c - 0.75, "difference_ci_high": c - 0.65}
            if model == "coxnet+clinical" and name != "complete":
                row |= {"note": "unchanged: those that it predicts lack nothing that it reads", "unpredicted": 0}
            if model == "snn" and name == "without omics":
                row = {k: v for k, v in row.items() if not isinstance(v, float)} | {"patients": 0, "folds": 0, "unpredicted": 90}
                row["note"] = "not applicable: it reads nothing but omics"
            rows.append(row)
    return pd.DataFrame(rows, columns=list(SCENARIO_COLUMNS))


def written(folder: Path, *drops: float, **options: str) -> Path:
    write_table(scenario_rows(*drops, **options), folder / "scenarios.tsv")
    return folder / "scenarios.tsv"


def texts(figure: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", figure.read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    return Site(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def plain(site: Site) -> str:
    """The page of a study that takes nothing away."""
    return site.write(**NO_FIGURES)


def count(html: str) -> int:
    return len(images(html, r"svg\+xml"))


def test_a_study_without_scenarios_has_no_such_section(plain: str):
    assert "Patients who lack modalities" not in plain
    assert "#missing" not in plain


def test_the_page_has_the_table_and_the_figure(site: Site, plain: str, tmp_path: Path):
    html = site.write(**NO_FIGURES, scenarios=written(tmp_path, 0.4))
    text = Page(html).text
    assert count(html) == count(plain) + 1
    for expected in (
        "each model does what its own options say of such patients",
        "Without omics",
        "Each modality dropped with p = 0.4 mean of 10 draws, the same for every model",
        "mlp+wide 0.600 [0.500, 0.700] 0.700 −0.100 [−0.150, −0.050] 80 10 without a prediction: lacks omics",
        "coxnet+clinical reference unchanged 0.700 [0.600, 0.800] 0.700 80",
        "snn not applicable – – 0 90 it reads nothing but omics",
    ):
        assert expected in text, expected
    assert 'href="#missing"' in html


def test_several_probabilities_become_lines_over_them(site: Site, plain: str, tmp_path: Path):
    assert count(site.write(**NO_FIGURES, scenarios=written(tmp_path, 0.4, 0.2))) == count(plain) + 2
    table = scenario_rows(0.4, 0.2)
    write_table(table[table.scenario != "without omics"], tmp_path / "drops.tsv")
    assert count(site.write(**NO_FIGURES, scenarios=tmp_path / "drops.tsv")) == count(plain) + 1


def test_zeros_are_called_zeros(site: Site, tmp_path: Path):
    assert (
        "which become zeros of the same shape, without a flag that tells the model"
        in Page(site.write(**NO_FIGURES, scenarios=written(tmp_path, 0.4, fill="zeros"))).text
    )


def test_rows_stand_by_scenario_highest_figure_first(tmp_path: Path):
    groups = scenario_groups(read_scenarios(written(tmp_path, 0.4)))
    assert [group["heading"] for group in groups] == ["Without omics", "Each modality dropped with p = 0.4"]
    assert [row["model"] for row in groups[0]["rows"]] == ["coxnet+clinical", "mlp+wide", "snn"]
    assert [row["tag"] for row in groups[0]["rows"]] == ["unchanged", "", "not applicable"]
    assert [row["note"] for row in groups[0]["rows"]] == ["", "without a prediction: lacks omics", "it reads nothing but omics"]


def test_probabilities_rise_and_names_keep_their_letters(tmp_path: Path):
    assert probabilities(read_scenarios(written(tmp_path, 0.8, 0.05, 0.4))) == ["drop 0.05", "drop 0.4", "drop 0.8"]
    assert heading("without ICD_codes") == "Without ICD_codes"


def test_the_panels_tell_who_has_no_figure(tmp_path: Path):
    draw_losses(read_scenarios(written(tmp_path, 0.4)), MODELS, tmp_path / "losses.svg", measure="C-index")
    found = texts(tmp_path / "losses.svg")
    assert found.count("not applicable") == 1
    assert {"Without omics", "Each modality dropped with p = 0.4", *MODELS} <= set(found)


def test_figures_repeat_byte_for_byte_and_fit_the_page(tmp_path: Path):
    table = read_scenarios(written(tmp_path, *np.arange(1, 10) / 10))
    more = pd.concat([table.assign(scenario=table.scenario.replace("without omics", f"without m{i}")) for i in range(5)])
    for draw in (draw_losses, draw_drops):
        for name in ("a.svg", "b.svg"):
            draw(more if draw is draw_losses else table, MODELS, tmp_path / name, measure="AUC")
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
        assert float(re.search(r'width="([\d.]+)pt"', (tmp_path / "a.svg").read_text())[1]) <= 12 * 72


def test_a_damaged_table_is_told_with_its_row(tmp_path: Path):
    table = scenario_rows(0.4).astype({"c_index": object})
    table.loc[1, "c_index"] = "much"
    write_table(table, tmp_path / "scenarios.tsv")
    with pytest.raises(InputError, match=r"scenarios\.tsv, row 3, column 'c_index'.*found 'much'"):
        read_scenarios(tmp_path / "scenarios.tsv")
