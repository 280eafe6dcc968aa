from pathlib import Path

from pipeline.evaluation.comparison import compare_models
from pipeline.logs import logged

folders = {}
for file in map(Path, snakemake.input.get("predictions", [])):
    folders.setdefault(file.parents[1].name, []).append(file.parent)

with logged(snakemake.log[0]):
    compare_models(
        cohort=snakemake.wildcards.cohort,
        folders=folders,
        patients=Path(snakemake.input.patients),
        splits=Path(snakemake.input.splits),
        output=Path(snakemake.output.comparison),
        ranks=Path(snakemake.output.ranks),
        bootstrap=snakemake.params.bootstrap,
        seed=snakemake.params.seed,
    )
