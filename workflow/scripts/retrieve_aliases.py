from pipeline.logs import logged
from pipeline.retrieve.client import Client
from pipeline.retrieve.hgnc import fetch_aliases

with logged(snakemake.log[0]):
    fetch_aliases(snakemake.params.url, snakemake.output[0], Client.of(snakemake.config))
