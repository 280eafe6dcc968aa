from pipeline.logs import logged
from pipeline.slides.listing import read_slides
from pipeline.slides.stages.manifests import gather_quality

with logged(snakemake.log[0]):
    i, o = snakemake.input, snakemake.output
    gather_quality(read_slides(i.slides), i.tissue, i.patches, o.table, o.sheets)
