from pipeline.logs import logged
from pipeline.slides.listing import list_slides
from pipeline.tables import write_table

with logged(snakemake.log[0]):
    p = snakemake.params
    table = next(iter(snakemake.input.table), None)
    slides = list_slides(p.folder, pattern=p.pattern, patient_regex=p.patient_id_pattern, table=table)
    write_table(slides, snakemake.output[0])
