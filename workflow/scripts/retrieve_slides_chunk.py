from pipeline.logs import logged
from pipeline.retrieve.client import Client
from pipeline.retrieve.gdc import download_slides

with logged(snakemake.log[0]):
    p = snakemake.params
    download_slides(
        p.base,
        snakemake.input[0],
        p.folder,
        snakemake.output[0],
        Client.of(snakemake.config),
        chunk=int(snakemake.wildcards.chunk),
        chunks=p.chunks,
    )
