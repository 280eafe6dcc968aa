from pipeline.logs import logged
from pipeline.slides.foreign import list_foreign
from pipeline.slides.listing import list_slides
from pipeline.tables import write_table

with logged(snakemake.log[0]):
    p, table = snakemake.params, next(iter(snakemake.input.table), None)
    if p.made:
        slides = list_foreign(**p.made, patient_regex=p.patient_id_pattern, table=table)
    else:
        slides = list_slides(p.folder, pattern=p.pattern, patient_regex=p.patient_id_pattern, table=table)
    write_table(slides, snakemake.output[0])
