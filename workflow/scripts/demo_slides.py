from pathlib import Path

from pipeline.demo.slides import write_slides
from pipeline.logs import logged

with logged(snakemake.log[0]):
    p = snakemake.params
    write_slides(Path(p.folder))
