from pathlib import Path

from pipeline.logs import logged
from pipeline.report.resources import write_resources

with logged(snakemake.log[0]):
    output = Path(snakemake.output[0])
    write_resources(output.parent / "benchmarks", output)
