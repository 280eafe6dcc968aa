from pathlib import Path

from pipeline.logs import logged
from pipeline.slides.listing import read_chunk
from pipeline.slides.stages.tissue import tissue_chunk
from pipeline.slides.tissue import TissueSettings

with logged(snakemake.log[0]):
    p, manifest = snakemake.params, Path(snakemake.output[0])
    slides = read_chunk(snakemake.input.slides, int(snakemake.wildcards.chunk), p.chunks)
    tissue_chunk(slides, manifest.parent, manifest, TissueSettings(**p.settings), default_mpp=p.mpp)
