from pipeline.cohort.bags import import_bags
from pipeline.imaging.cases import gather_cases
from pipeline.logs import logged

with logged(snakemake.log[0]):
    if snakemake.params.made:
        import_bags(snakemake.input[0], snakemake.output[0], **snakemake.params.arrays)
    else:
        gather_cases(snakemake.input[0], snakemake.output[0])
