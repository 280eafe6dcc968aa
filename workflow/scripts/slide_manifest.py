from pipeline.logs import logged
from pipeline.slides.listing import read_slides
from pipeline.slides.stages.manifests import gather_manifests

with logged(snakemake.log[0]):
    i = snakemake.input
    gather_manifests(read_slides(i.slides), i.tissue, i.patches, i.features, snakemake.output[0])
