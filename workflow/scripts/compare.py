from pathlib import Path

from pipeline.evaluation.comparison import compare_models
from pipeline.jobs.finished import fold_folders
from pipeline.logs import logged

with logged(snakemake.log[0]):
    folders = {}
    for folder in fold_folders(snakemake.input.folds):
        folders.setdefault(folder.parent.name, []).append(folder)
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
