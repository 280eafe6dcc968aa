from pathlib import Path

from pipeline.evaluation.scenarios import evaluate_scenarios
from pipeline.jobs.finished import fold_folders
from pipeline.logs import logged

with logged(snakemake.log[0]):
    folders = {}
    for folder in fold_folders(snakemake.input.folds):
        folders.setdefault(folder.parent.name, []).append(folder)
    evaluate_scenarios(
        cohort=snakemake.wildcards.cohort,
        folders=folders,
        predictions={Path(file).parent.name: Path(file) for file in snakemake.input.scenarios},
        patients=Path(snakemake.input.patients),
        splits=Path(snakemake.input.splits),
        output=Path(snakemake.output[0]),
        bootstrap=snakemake.params.bootstrap,
        seed=snakemake.params.seed,
    )
