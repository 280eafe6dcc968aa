from pipeline.logs import logged
from pipeline.retrieve.client import Client
from pipeline.retrieve.gdc import write_manifest

with logged(snakemake.log[0]):
    write_manifest(snakemake.params.base, snakemake.params.projects, snakemake.output[0], Client.of(snakemake.config))
