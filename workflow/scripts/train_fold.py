from pathlib import Path

from pipeline.jobs.cores import Cores
from pipeline.jobs.finished import units_of
from pipeline.logs import logged
from pipeline.training.job import train_folds

cores = Cores(snakemake.threads)  # claimed before anything heavy is imported

with logged(snakemake.log[0]):
    single = {name: next(iter(snakemake.input.get(name) or []), None) for name in ("matrix", "groups", "manifest")}
    bags = {Path(file).stem: file for file in snakemake.input.get("bags") or []}
    p, table = snakemake.params, Path(snakemake.output[0])
    train_folds(
        settings=p.settings,
        units=units_of(snakemake.wildcards.part, p.folds, p.shuffled),
        files={"patients": snakemake.input.patients, "splits": snakemake.input.splits, "bags": bags, **single},
        model=table.parent,
        table=table,
        benchmarks=table.parents[1] / "benchmarks",
        code=p.code,
        cores=cores,
        memory_mb=snakemake.resources.mem_mb,
    )
