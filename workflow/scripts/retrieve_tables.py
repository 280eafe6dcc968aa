from pipeline.logs import logged
from pipeline.retrieve.source import list_sources

with logged(snakemake.log[0]):
    list_sources(snakemake.input, snakemake.output[0])
