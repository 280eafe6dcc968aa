from pipeline.logs import logged
from pipeline.retrieve.cbioportal import write_clinical
from pipeline.retrieve.client import Client

with logged(snakemake.log[0]):
    write_clinical(snakemake.params.base, snakemake.params.studies, snakemake.output[0], Client.of(snakemake.config))
