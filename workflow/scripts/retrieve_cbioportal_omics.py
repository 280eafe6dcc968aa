from pipeline.logs import logged
from pipeline.retrieve.cbioportal import write_omics
from pipeline.retrieve.client import Client

with logged(snakemake.log[0]):
    p = snakemake.params
    write_omics(p.base, p.studies, snakemake.input, snakemake.output[0], Client.of(snakemake.config), sample_types=p.sample_types)
