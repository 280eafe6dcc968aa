from pipeline.logs import logged
from pipeline.retrieve.xena import write_expression

with logged(snakemake.log[0]):
    i, p = snakemake.input, snakemake.params
    write_expression(
        i.matrix,
        i.probemap,
        i.survival,
        p.projects,
        snakemake.output[0],
        gene_sets=i.gene_sets,
        sample_types=p.sample_types,
        offset=p.offset,
    )
