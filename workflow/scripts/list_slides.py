from pipeline.logs import logged
from pipeline.slides.filesets import slide_files
from pipeline.slides.foreign import foreign_files, list_foreign
from pipeline.slides.listing import list_slides, write_slides

with logged(snakemake.log[0]):
    p, table = snakemake.params, next(iter(snakemake.input.table), None)
    if p.made:
        slides, files = list_foreign(**p.made, patient_regex=p.patient_id_pattern, table=table), foreign_files
    else:
        slides = list_slides(p.folder, pattern=p.pattern, patient_regex=p.patient_id_pattern, table=table)
        files = slide_files if p.listing else None  # slides that the workflow makes itself are not there yet
    write_slides(slides, snakemake.output[0], p.folder, files)
