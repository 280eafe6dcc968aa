from pipeline.logs import logged
from pipeline.retrieve.client import Client

with logged(snakemake.log[0]):
    Client.of(snakemake.config).download(snakemake.params.url, snakemake.output[0])
