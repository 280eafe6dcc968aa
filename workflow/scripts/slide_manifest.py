from pipeline.logs import logged
from pipeline.slides.listing import read_slides
from pipeline.slides.stages.manifests import drop_other_chunks, gather_manifests

with logged(snakemake.log[0]):
    i = snakemake.input
    drop_other_chunks([*i.tissue, *i.patches, *i.features])
    gather_manifests(read_slides(i.slides), i.tissue, i.patches, i.features, snakemake.output[0])
