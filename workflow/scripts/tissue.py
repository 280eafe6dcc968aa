from pathlib import Path

from pipeline.logs import logged
from pipeline.slides.listing import read_chunk
from pipeline.slides.masks import MaskSettings
from pipeline.slides.md5sums import Md5Sums
from pipeline.slides.quality import QualitySettings
from pipeline.slides.stages.tissue import tissue_chunk
from pipeline.slides.tissue import TissueSettings

with logged(snakemake.log[0]):
    p, manifest = snakemake.params, Path(snakemake.output[0])
    tissue_chunk(
        read_chunk(snakemake.input.slides, int(snakemake.wildcards.chunk), p.chunks, p.folder),
        manifest.parent,
        manifest,
        TissueSettings(**p.settings),
        quality=QualitySettings(**p.quality),
        masks=MaskSettings(**p.masks),
        md5sums=p.md5sums and Md5Sums(p.md5sums, p.folder),
        default_mpp=p.mpp,
        check=p.check,
        patience=p.patience,
    )
