"""A job that measures itself writes what Snakemake's `benchmark:` would."""

import multiprocessing

from pipeline.measuring import measured
from pipeline.report.resources import read_jobs


def busy(count: int) -> int:
    return sum(i * i for i in range(count))


def test_the_figures_are_those_of_the_job_and_its_children_and_the_report_reads_them(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=busy, args=(3_000_000,))
    with measured(tmp_path / "benchmarks/features_uni_3.tsv"):
        child.start()
        child.join()
    jobs = read_jobs(tmp_path / "benchmarks")
    assert jobs["stage"].tolist() == ["features uni"]
    assert jobs["seconds"][0] > 0.05
    assert jobs["cpu_seconds"][0] > 0.05
    assert 0.01 < jobs["peak_gb"][0] < 8
