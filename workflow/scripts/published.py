from pathlib import Path

from pipeline.logs import logged
from pipeline.report.published import write_published

with logged(snakemake.log[0]):
    summaries = {Path(file).parent.name: Path(file) for file in snakemake.input.summaries}
    write_published(snakemake.params.rows, summaries, Path(snakemake.output.tsv), Path(snakemake.output.md))
