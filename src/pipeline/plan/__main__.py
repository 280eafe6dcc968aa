"""``python -m pipeline.plan COHORT``: jobs, CPU and GPU hours, memory and disk of a run. No slide is opened, nothing is kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import study as studies
from pipeline.amounts import duration, gigabytes
from pipeline.doctor.machine import cores
from pipeline.doctor.options import key_values, read_settings
from pipeline.errors import InputError
from pipeline.machine import MachineError
from pipeline.plan.costs import Costs, Stage
from pipeline.plan.hints import chunk_hint
from pipeline.plan.jobs import count_jobs
from pipeline.plan.rates import Rates
from pipeline.plan.size import Size, measure
from pipeline.tables import write_table

RESULTS = Path("results")
HEADER = ["stage", "jobs", "cpu_hours", "gpu_hours", "peak_gb", "disk_gb", "hours", "known"]


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    try:
        text, table = plan(options)
        if options.tsv:
            write_table(table, options.tsv)
    except (InputError, MachineError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(text)
    return 0


def plan(options: argparse.Namespace) -> tuple[str, pd.DataFrame]:
    """The plan in words, and its table. Raises `InputError` for a study that cannot be read or run."""
    settings, command_line = read_settings(options.config)
    file = Path(options.cohort)
    named = file.suffix in (".yaml", ".yml")
    study = studies.load_study(settings, file.stem if named else options.cohort, command_line, file.parent if named else None)
    rates, results = Rates(), RESULTS / study["name"]
    jobs, size = count_jobs(study), measure(study, settings["demo"], rates, results)
    costs = Costs(study, size, rates, results, options.gpus)
    stages = list(costs.stages(jobs))
    table = pd.DataFrame([_row(stage, options.cores, options.gpus) for stage in stages], columns=HEADER)
    slurm_job = rates.of("slurm_job")
    hints = [*_gpu_hint(study, size, rates, results, costs, jobs), *chunk_hint(stages, slurm_job)]
    lines = [f"{study['name']}: {study['title']}", "", *_table(table), "", *_totals(stages, options), _on_slurm(study, rates)]
    lines += [*(f"→ {hint}" for hint in hints), "", "Assumptions", *_assumptions(study, size, costs), *_sources(rates)]
    return "\n".join(lines) + "\n", table


def _row(stage: Stage, cores: int, gpus: int) -> list[Any]:
    hours = [round(seconds / 3600, 4) for seconds in (stage.cpu, stage.gpu)]
    amounts = [round(stage.peak_gb, 2), round(stage.disk / 1e9, 3), round(stage.wall(cores, gpus) / 3600, 4)]
    return [stage.rule, stage.jobs, *hours, *amounts, stage.known]


def _table(table: pd.DataFrame) -> Iterator[str]:
    """The rows with aligned columns; an hour or GB that is nearly none is left blank."""
    heads = ["stage", "jobs", "CPU h", "GPU h", "peak GB", "disk GB", "rates"]
    rows = [heads]
    for row in table.to_dict("records"):
        figures = [_figure(row[column]) for column in ("cpu_hours", "gpu_hours", "peak_gb", "disk_gb")]
        rows.append([row["stage"], f"{row['jobs']:,}", *figures, row["known"]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        yield "  ".join(cells).rstrip()


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 1 else f"{value:.2f}" if value >= 0.005 else ""


def _totals(stages: Sequence[Stage], options: argparse.Namespace) -> Iterator[str]:
    jobs, cpu, gpu = (sum(column) for column in zip(*((stage.jobs, stage.cpu / 3600, stage.gpu / 3600) for stage in stages), strict=True))
    largest, longest = max(stages, key=lambda stage: stage.peak_gb), max(stages, key=lambda stage: stage.longest)
    yield (
        f"Total: {jobs:,} jobs, {cpu:,.1f} CPU hours, {gpu:,.1f} GPU hours, "
        f"{largest.peak_gb:.1f} GB of memory for the largest job ({largest.rule}), {gigabytes(sum(stage.disk for stage in stages))} on disk"
    )
    wall = duration(sum(stage.wall(options.cores, options.gpus) for stage in stages))
    yield (
        f"Time: about {wall} with {options.cores} cores and {options.gpus} GPUs, one stage after the other; "
        f"the longest job {duration(longest.longest)} ({f'{longest.rule} {longest.slowest}'.strip()})"
    )


def _on_slurm(study: dict[str, Any], rates: Rates) -> str:
    """What the jobs of a cluster cost beside their work: those of one fold each, as the profile has it, start anew for each."""
    jobs, each = count_jobs(study, folds_per_job=1), rates.of("slurm_job")
    training = sum(jobs[rule] - count for rule, count in count_jobs(study).items()) * rates.of("start_up.training")
    total = sum(jobs.values())
    return f"On SLURM: {total:,} jobs, {duration(total * each + training)} of processor time more, {each:g} s a job and what starts anew"


def _assumptions(study: dict[str, Any], size: Size, costs: Costs) -> Iterator[str]:
    yield from (f"  {line}" for line in size.known)
    if study["endpoints"]:
        yield from (f"  {model} is not run: it {reason}" for model, reason in studies.not_run(study).items())
        yield "  every patient has every modality and every epoch is trained: less where patients lack some, or training stops early"
        yield "  networks as large as their papers': less in cohorts whose presets are smaller (the demo's)"
    else:
        yield "  no follow-up: features alone"
    yield "  everything is made anew; tables that have to be retrieved first are not counted"
    if size.slides and not study["slides"]["features"]:
        yield f"  {costs.encoder} encodes on " + (f"a GPU, {study['slides']['readers']} readers" if costs.on_gpu else "the CPU")


def _sources(rates: Rates) -> Iterator[str]:
    yield f"Rates, of {rates.file.name} where no earlier run has measured them"
    yield from (f"  {name}: {source}" for name, source in sorted(rates.used.items()))


def _gpu_hint(study: dict[str, Any], size: Size, rates: Rates, results: Path, costs: Costs, jobs: dict[str, int]) -> Iterator[str]:
    """What a GPU would make of the encoder's hours."""
    if costs.takes_gpu and not costs.on_gpu and "features" in jobs:
        there = Costs(study, size, rates, results, gpus=1).features(jobs["features"])
        yield f"With a GPU (--gpus 1) the encoder takes about {there.gpu / 3600:,.1f} GPU hours and {there.cpu / 3600:,.1f} CPU hours."


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.plan", description=__doc__)
    parser.add_argument("cohort", help="a name under config/cohorts, or the path of such a file")
    parser.add_argument("--config", action="append", default=[], metavar="KEY=VALUE", help="as Snakemake's, e.g. data_dir=/data")
    parser.add_argument("--cores", type=int, default=cores(), metavar="N", help="for the time; by default this machine's")
    parser.add_argument("--gpus", type=int, default=0, metavar="G", help="0: networks encode on the CPU")
    parser.add_argument("--tsv", type=Path, metavar="FILE", help="write the table, one row a stage")
    options = parser.parse_args(arguments)
    if options.cores < 1 or options.gpus < 0:
        parser.error("--cores takes a number above 0, --gpus one from 0")
    try:
        options.config = key_values(options.config)
    except ValueError as error:
        parser.error(str(error))
    return options


if __name__ == "__main__":
    sys.exit(main())
