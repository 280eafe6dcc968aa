from pathlib import Path

from pipeline.evaluation.summary import write_summary
from pipeline.logs import logged

with logged(snakemake.log[0]):
    rows = [Path(file) for file in snakemake.input]
    write_summary(rows, snakemake.params.not_run, Path(snakemake.output[0]), endpoint=snakemake.params.endpoint)
