from pipeline.logs import logged
from pipeline.retrieve.client import Client
from pipeline.retrieve.msigdb import fetch_gene_sets

with logged(snakemake.log[0]):
    p = snakemake.params
    fetch_gene_sets(p.base, p.release, snakemake.wildcards.collection, snakemake.output[0], Client.of(snakemake.config))
