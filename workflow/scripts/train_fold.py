import torch

from pipeline.logs import logged
from pipeline.training.fold import train_fold

torch.set_num_threads(1)  # fixed, so that predictions do not depend on --cores

with logged(snakemake.log[0]):
    single = {name: next(iter(snakemake.input.get(name) or []), None) for name in ("matrix", "groups", "manifest")}
    train_fold(
        settings=snakemake.params.settings,
        fold=int(snakemake.wildcards.fold),
        files={"patients": snakemake.input.patients, "splits": snakemake.input.splits, **single},
        outputs=dict(snakemake.output.items()),
        code=snakemake.params.code,
    )
