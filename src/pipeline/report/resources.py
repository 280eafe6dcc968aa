"""Hours and memory of a cohort's run, stage by stage, from the `benchmark:` files that Snakemake wrote of its jobs."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.tables import numeric, read_table, write_table

log = logging.getLogger(__name__)

COLUMNS = ["stage", "jobs", "hours", "cpu_hours", "peak_gb", "longest_minutes"]
MEASURED = ["s", "cpu_time", "max_rss"]  # seconds, seconds, MiB
JOBS = [  # names of jobs' files in the workflow's order; the page's own job is left out, as it has not ended when the table is made
    r"(?P<rule>demo_tables)",
    r"(?P<rule>demo_slides)_\d+",
    r"(?P<rule>tissue)_\d+",
    r"(?P<rule>patches)_\d+",
    r"(?P<rule>features)_(?P<of>.+)_\d+",
    r"(?P<rule>mri_features)_(?P<of>.+)",
    r"(?P<rule>omics_matrix)",
    r"(?P<rule>train)_(?P<of>.+?)(?P<control>_shuffled\d+)?_\d+",  # one a fold: a job of many measures each
    r"(?P<rule>predict_scenarios)_(?P<of>.+)",
    r"(?P<rule>evaluate)_(?P<of>.+)",
    r"(?P<rule>scenarios)",
    r"(?P<rule>compare)",
]


def stage_of(job: str) -> tuple[int, str] | None:
    """Place in the workflow and name of a job's stage: its rule and model or encoder, without chunk, fold and repetition.

    `job` is the name of its benchmark file without the suffix. None for what is no stage.

    >>> stage_of("train_survq+queries_400_128_shuffled0_3")
    (7, 'train survq+queries_400_128, permuted labels')
    """
    for place, pattern in enumerate(JOBS):
        if found := re.fullmatch(pattern, job):
            parts = found.groupdict()
            name = f"{parts['rule']} {parts.get('of') or ''}".strip()
            return place, name + ", permuted labels" * bool(parts.get("control"))
    return None


def read_jobs(folder: Path, pattern: str = "*.tsv") -> pd.DataFrame:
    """One row a job of ``results/<cohort>/benchmarks`` whose file matches `pattern`: place, stage, seconds, cpu_seconds, peak_gb.

    A job of a moment has 0 CPU seconds and no peak (NaN). A file that cannot be read is left out with a warning: the figures of one job
    are not worth a report.
    """
    rows = []
    for file in sorted(folder.glob(pattern)):
        stage = stage_of(file.stem)
        if stage is None:
            continue
        try:
            table = read_table(file, MEASURED)
            seconds, cpu, peak = numeric(table.replace("-", None), MEASURED, file).iloc[0]
        except (InputError, IndexError) as error:
            log.warning("%s: left out of the table of resources (%s)", file, error)
            continue
        rows.append((*stage, seconds, 0.0 if pd.isna(cpu) else cpu, peak * 2**20 / 1e9))
    return pd.DataFrame(rows, columns=["place", "stage", "seconds", "cpu_seconds", "peak_gb"])


def stages(folder: Path) -> pd.DataFrame:
    """One row a stage in the workflow's order, `COLUMNS`: hours by the wall, summed over jobs, GB of the largest job."""
    table = read_jobs(folder).groupby(["place", "stage"], as_index=False)
    table = table.agg(
        jobs=("seconds", "size"),
        hours=("seconds", lambda s: s.sum() / 3600),
        cpu_hours=("cpu_seconds", lambda s: s.sum() / 3600),
        peak_gb=("peak_gb", "max"),
        longest_minutes=("seconds", lambda s: s.max() / 60),
    )
    return table.round({"hours": 5, "cpu_hours": 5, "peak_gb": 3, "longest_minutes": 3})[COLUMNS]


def write_resources(folder: Path, output: Path) -> None:
    """Write the table of `stages` of the benchmark files in `folder`."""
    write_table(stages(folder), output)


def resource_section(path: Path | None) -> dict[str, object] | None:
    """The report's section on ``resources.tsv``; None where there is no table, or no job in it. Raises `InputError` for a damaged one."""
    if path is None:
        return None
    table = read_table(path, COLUMNS)
    if table.empty:
        return None
    table[COLUMNS[1:]] = numeric(table, COLUMNS[1:], path)
    totals = {column: table[column].sum() for column in ("jobs", "hours", "cpu_hours")} | {"peak_gb": table.peak_gb.max()}
    return {"rows": table.to_dict("records"), "totals": totals}
