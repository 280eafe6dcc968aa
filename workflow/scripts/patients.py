from pathlib import Path

from pipeline.cohort.patients import build_cohort
from pipeline.logs import logged

with logged(snakemake.log[0]):
    build_cohort(
        snakemake.params.endpoint,
        patients=snakemake.output.patients,
        flow=snakemake.output.flow,
        excluded=snakemake.output.excluded,
        omics=next(iter(snakemake.input.get("matrix") or []), None),
        manifest=next(iter(snakemake.input.get("manifest") or []), None),
        vectors=snakemake.params.tables,
        bags={Path(file).stem: file for file in snakemake.input.get("bags") or []},
        include=snakemake.params.include,
        min_share=snakemake.params.min_share,
    )
