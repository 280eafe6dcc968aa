from pipeline.logs import logged
from pipeline.retrieve.xena import write_clinical

with logged(snakemake.log[0]):
    write_clinical(snakemake.input[0], snakemake.params.projects, snakemake.output[0])
