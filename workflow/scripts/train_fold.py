from pathlib import Path

import torch

from pipeline.logs import logged
from pipeline.training.fold import train_fold

torch.set_num_threads(1)  # fixed, so that predictions do not depend on --cores

with logged(snakemake.log[0]):
    single = {name: next(iter(snakemake.input.get(name) or []), None) for name in ("matrix", "groups", "manifest")}
    bags = {Path(file).stem: file for file in snakemake.input.get("bags") or []}
    train_fold(
        settings=snakemake.params.settings,
        fold=int(snakemake.wildcards.fold),
        files={"patients": snakemake.input.patients, "splits": snakemake.input.splits, "bags": bags, **single},
        outputs=dict(snakemake.output.items()),
        code=snakemake.params.code,
    )
