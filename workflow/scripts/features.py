from pathlib import Path

from pipeline.logs import logged
from pipeline.slides.listing import read_chunk
from pipeline.slides.stages.features import features_chunk

with logged(snakemake.log[0]):
    p, manifest = snakemake.params, Path(snakemake.output[0])
    slides = read_chunk(snakemake.input.slides, int(snakemake.wildcards.chunk), p.chunks)
    features_chunk(
        snakemake.input.patches,
        slides,
        manifest.parent,
        manifest,
        snakemake.wildcards.encoder,
        overrides=p.encoders,
        batch_size=p.batch_size,
        threads=p.threads,
        max_bad_share=p.max_bad_share,
    )
