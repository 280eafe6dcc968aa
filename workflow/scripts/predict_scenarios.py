from pathlib import Path

import torch

from pipeline.jobs.finished import fold_folders
from pipeline.logs import logged
from pipeline.training.scenarios import predict_scenarios

torch.set_num_threads(1)  # fixed, so that predictions do not depend on --cores

with logged(snakemake.log[0]):
    single = {name: next(iter(snakemake.input.get(name) or []), None) for name in ("matrix", "groups", "manifest")}
    bags = {Path(file).stem: file for file in snakemake.input.get("bags") or []}
    predict_scenarios(
        settings=snakemake.params.settings,
        missing=snakemake.params.missing,
        folds=fold_folders(snakemake.input.folds),
        files={"patients": snakemake.input.patients, "splits": snakemake.input.splits, "bags": bags, **single},
        output=Path(snakemake.output[0]),
        memory_mb=snakemake.resources.mem_mb,
    )
