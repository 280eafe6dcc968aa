from pipeline.cohort.splits import build_splits
from pipeline.logs import logged

with logged(snakemake.log[0]):
    build_splits(snakemake.input.patients, snakemake.params.splits, snakemake.output[0], seed=snakemake.params.seed)
