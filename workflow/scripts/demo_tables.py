from pathlib import Path

from pipeline.demo.tables import write_tables
from pipeline.logs import logged

with logged(snakemake.log[0]):
    p = snakemake.params
    write_tables(Path(snakemake.output.clinical).parent, patients=p.patients, seed=p.seed, null=p.null)
