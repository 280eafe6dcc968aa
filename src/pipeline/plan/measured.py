"""What the stages took in earlier runs, from their benchmark files and manifests under ``results/``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.plan.size import slide_manifests
from pipeline.report.resources import read_jobs
from pipeline.tables import numeric, read_table

DEMO = "demo"  # its slides are a millimetre large: nothing about others follows from them


@dataclass(frozen=True)
class Measured:
    """Of all jobs of a stage together: their number, seconds by the wall, CPU seconds, slides or patches done; GB of the largest job."""

    jobs: int
    seconds: float
    cpu_seconds: float
    peak_gb: float
    units: float
    cohorts: tuple[str, ...]
    on_gpu: bool = False

    def each(self, start_up: float, by_wall: bool = False) -> float:
        """Seconds a slide or patch, the start-up of the jobs taken off."""
        return max((self.seconds if by_wall else self.cpu_seconds) - start_up * self.jobs, 0.0) / self.units


def own_stages(results: Path) -> dict[str, Measured]:
    """Stage (of `resources.stage_of`) → what its jobs took in the cohort's own earlier run; a unit is a job."""
    jobs = read_jobs(results / "benchmarks")
    return {stage: _summed(part, len(part), (results.name,)) for stage, part in jobs.groupby("stage")}


def slide_stage(results: Path, stage: str, encoder: str = "") -> Measured | None:
    """What slides (`tissue`, `patches`) or patches (`features`) took in the cohort's own earlier run, else in those of other cohorts."""
    others = [folder for folder in sorted(results.parent.glob("*")) if folder.name not in (results.name, DEMO)]
    for folders in ([results], others):
        found = [(folder, part, units) for folder in folders for part, units in [_work(folder, stage, encoder)] if len(part) and units]
        if found:
            jobs, units = pd.concat([part for _, part, _ in found]), sum(units for *_, units in found)
            on_gpu = bool(encoder) and any(_on_gpu(folder, encoder) for folder, *_ in found)
            return _summed(jobs, units, tuple(folder.name for folder, *_ in found), on_gpu)
    return None


def _work(results: Path, stage: str, encoder: str) -> tuple[pd.DataFrame, float]:
    """The jobs of a stage of one cohort, and how many slides or patches they did."""
    jobs = read_jobs(results / "benchmarks", f"{stage}_*.tsv")
    jobs = jobs[jobs["stage"] == f"{stage} {encoder}".strip()]
    files = slide_manifests(results, f"{stage}/{encoder}" if encoder else stage) if len(jobs) else []
    if not encoder:
        return jobs, sum(len(read_table(file)) for file in files)
    return jobs, sum(numeric(read_table(file, ["patches"]), "patches", file)["patches"].sum() for file in files)


def _on_gpu(results: Path, encoder: str) -> bool:
    """Whether a file of features says that a GPU made it."""
    from pipeline.hdf5 import attributes, open_hdf5

    file = next((results / "slides" / "features" / encoder).glob("*.h5"), None)
    if file is None:
        return False
    with open_hdf5(file) as features:
        return "cuda" in str(attributes(features).get("device", ""))


def _summed(jobs: pd.DataFrame, units: float, cohorts: tuple[str, ...], on_gpu: bool = False) -> Measured:
    return Measured(len(jobs), jobs["seconds"].sum(), jobs["cpu_seconds"].sum(), jobs["peak_gb"].max(), units, cohorts, on_gpu)
