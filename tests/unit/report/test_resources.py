import logging
import runpy
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.report.resources import COLUMNS, read_jobs, resource_section, stage_of, stages, write_resources
from pipeline.tables import read_table, write_table

REPORT = runpy.run_path(str(Path(__file__).with_name("test_report_page.py")))
Page, Site, NO_FIGURES, EVIL = (REPORT[name] for name in ("Page", "Site", "NO_FIGURES", "EVIL"))
HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What Snakemake wrote of eight jobs, in the alphabet's order and not in the workflow's."""
    (tmp_path / "benchmarks").mkdir()
    jobs = {
        "compare": (36.0, 1000, 18.0),
        "evaluate_survq+queries_400_128": (7.2, 500, 3.6),
        "features_h_optimus_0_10": (720.0, 4000, 1440.0),
        "features_h_optimus_0_2": (360.0, 5000, 720.0),
        "train_snn_0": (60.0, "-", "-"),
        "train_snn_1": (120.0, 800, 100.0),
        "train_snn_shuffled0_3": (90.0, 900, 80.0),
        "report_page": (9.0, 700, 8.0),
    }
    for job, (seconds, peak, cpu) in jobs.items():
        row = f"{seconds}\t0:00:01\t{peak}\t1\t1\t1\t0\t0\t50\t{cpu}\n"
        (tmp_path / "benchmarks" / f"{job}.tsv").write_text(HEADER + row)
    return tmp_path / "benchmarks"


@pytest.mark.parametrize(
    ("job", "stage"),
    [
        ("demo_slides_3", "demo_slides"),
        ("tissue_12", "tissue"),
        ("features_stain_texture_2", "features stain_texture"),
        ("features_h_optimus_0_2", "features h_optimus_0"),
        ("mri_features_t2", "mri_features t2"),
        ("train_snn_0", "train snn"),
        ("train_snn_shuffled0_3", "train snn, permuted labels"),
        ("train_survq+queries_400_128_4", "train survq+queries_400_128"),
        ("predict_scenarios_adamhf+beta_0.05", "predict_scenarios adamhf+beta_0.05"),
        ("evaluate_survq+queries_400_128", "evaluate survq+queries_400_128"),
    ],
)
def test_a_job_belongs_to_its_rule_and_its_model_or_encoder(job, stage):
    assert stage_of(job)[1] == stage


def test_what_is_no_measured_job_has_no_stage():
    assert stage_of("report_page") is None
    assert stage_of("notes") is None


def test_jobs_are_summed_by_stage_in_the_workflows_order(folder):
    table = stages(folder)
    assert list(table.columns) == COLUMNS
    assert table.to_numpy().tolist() == [
        ["features h_optimus_0", 2, 0.3, 0.6, 5.243, 12.0],  # 5000 MiB
        ["train snn", 2, 0.05, pytest.approx(100 / 3600, abs=1e-5), 0.839, 2.0],  # the first was too short to be seen
        ["train snn, permuted labels", 1, 0.025, pytest.approx(80 / 3600, abs=1e-5), 0.944, 1.5],
        ["evaluate survq+queries_400_128", 1, 0.002, 0.001, 0.524, 0.12],
        ["compare", 1, 0.01, 0.005, 1.049, 0.6],
    ]


def test_the_table_is_read_back(folder, tmp_path):
    write_resources(folder, tmp_path / "resources.tsv")
    assert read_table(tmp_path / "resources.tsv")["stage"].tolist()[0] == "features h_optimus_0"
    section = resource_section(tmp_path / "resources.tsv")
    assert len(section["rows"]) == 5
    assert section["totals"] == {"jobs": 7, "hours": pytest.approx(0.387), "cpu_hours": pytest.approx(0.656), "peak_gb": 5.243}


def test_a_file_that_was_cut_off_is_left_out(folder, caplog):
    (folder / "train_snn_1.tsv").write_text("s\th:m")
    (folder / "train_snn_0.tsv").write_text(HEADER)
    with caplog.at_level(logging.WARNING):
        assert "train snn" not in set(read_jobs(folder)["stage"])
    assert [record.args[0].name for record in caplog.records] == ["train_snn_0.tsv", "train_snn_1.tsv"]


def test_no_table_and_no_job_are_no_section(tmp_path):
    assert resource_section(None) is None
    write_resources(tmp_path / "nothing", tmp_path / "resources.tsv")
    assert read_table(tmp_path / "resources.tsv").columns.tolist() == COLUMNS
    assert resource_section(tmp_path / "resources.tsv") is None


def test_a_figure_that_is_none_is_told_with_its_row(tmp_path):
    write_table(pd.DataFrame([["tissue", 1, "long", 1, 1, 1]], columns=COLUMNS), tmp_path / "resources.tsv")
    with pytest.raises(InputError, match=r"resources\.tsv.*row 2.*column 'hours'.*found 'long'"):
        resource_section(tmp_path / "resources.tsv")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("resources"))


def test_the_page_says_what_the_run_has_cost(site, folder, tmp_path):
    write_resources(folder, tmp_path / "resources.tsv")
    html = site.write("cost.html", resources=tmp_path / "resources.tsv", **NO_FIGURES)
    text = Page(html).text
    assert "7 jobs took 23 min one after another, 39 min of processor time, and 5.2 GB of memory at the most." in text
    assert "features h_optimus_0 2 18 min 36 min 12 min 5.24" in text
    assert '<a href="#resources">' in html
    assert "All 5 stages" not in text


def test_a_page_without_the_table_has_no_such_section(site):
    html = site.write("none.html", **NO_FIGURES)
    assert "Hours and memory" not in html


def test_many_stages_are_folded_away_and_their_names_escaped(site, tmp_path, monkeypatch):
    rows = [[f"train {EVIL}", 1, 0.1, 0.1, 1.0, 6.0], ["compare", 1, 0.1, 0.1, None, 6.0]]
    write_table(pd.DataFrame(rows, columns=COLUMNS), tmp_path / "resources.tsv")
    monkeypatch.setattr("pipeline.report.page.LONG_TABLE", 1)
    page = Page(site.write("many.html", resources=tmp_path / "resources.tsv", **NO_FIGURES))
    assert "All 2 stages" in page.text
    assert EVIL in page.text
    assert "script" not in {tag for tag, _ in page.tags}
