from pipeline.logs import logged
from pipeline.retrieve.gdc import join_chunks

with logged(snakemake.log[0]):
    join_chunks(snakemake.input, snakemake.output[0])
