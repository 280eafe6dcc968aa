from pathlib import Path

import pandas as pd

from pipeline.demo.plan import slide_ids
from pipeline.demo.slides import write_slides
from pipeline.identifiers import chunk_of
from pipeline.logs import logged
from pipeline.tables import write_table

with logged(snakemake.log[0]):
    p, chunk = snakemake.params, int(snakemake.wildcards.chunk)
    slides = [slide for slide in slide_ids(p.patients, p.seed) if chunk_of(slide, p.chunks) == chunk]
    made = write_slides(Path(p.folder), slides=slides, patients=p.patients, seed=p.seed)
    write_table(pd.DataFrame({"slide_id": slides, "file": [path.name for path in made]}), snakemake.output[0])
