from pipeline.logs import logged
from pipeline.omics.matrix import build_matrix

with logged(snakemake.log[0]):
    build_matrix(snakemake.params.tables, snakemake.output.matrix, snakemake.output.report)
