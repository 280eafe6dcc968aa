from pathlib import Path

from pipeline.logs import logged
from pipeline.slides.listing import read_chunk
from pipeline.slides.masks import MaskSettings
from pipeline.slides.patches import PatchSettings
from pipeline.slides.stages.patches import patches_chunk

with logged(snakemake.log[0]):
    p, manifest = snakemake.params, Path(snakemake.output[0])
    slides = read_chunk(snakemake.input.slides, int(snakemake.wildcards.chunk), p.chunks, p.folder)
    settings = PatchSettings(**p.settings)
    ignore = MaskSettings(**p.masks).ignore
    patches_chunk(snakemake.input.tissue, slides, manifest.parent, manifest, settings, ignore=ignore, patience=p.patience)
