from pathlib import Path

from pipeline.logs import logged
from pipeline.slides.encoders.network import EncoderSettings
from pipeline.slides.foreign import import_chunk
from pipeline.slides.listing import read_chunk
from pipeline.slides.stages.features import ReadingSettings, features_chunk

with logged(snakemake.log[0]):
    p, manifest = snakemake.params, Path(snakemake.output[0])
    slides = read_chunk(snakemake.input.slides, int(snakemake.wildcards.chunk), p.chunks)
    encoder = snakemake.wildcards.encoder
    if p.made:
        import_chunk(slides, manifest.parent, manifest, encoder)
    else:
        features_chunk(
            snakemake.input.patches,
            slides,
            manifest.parent,
            manifest,
            encoder,
            overrides=p.encoders,
            running=EncoderSettings(**p.running),
            reading=ReadingSettings(**p.reading),
        )
