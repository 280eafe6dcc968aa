from pipeline.logs import logged
from pipeline.omics.groups import build_groups

with logged(snakemake.log[0]):
    build_groups(
        snakemake.input.matrix,
        snakemake.params.groupings,
        snakemake.output.groups,
        snakemake.output.coverage,
        snakemake.input.aliases,
    )
