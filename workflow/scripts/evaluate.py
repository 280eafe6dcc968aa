from pathlib import Path

from pipeline.evaluation.model import evaluate_model
from pipeline.jobs.finished import fold_folders
from pipeline.logs import logged

with logged(snakemake.log[0]):
    repetitions = {}
    asked = snakemake.params.asked
    for folder in fold_folders(snakemake.input.get("shuffled", []), asked):
        repetitions.setdefault(folder.parent, []).append(folder)
    evaluate_model(
        cohort=snakemake.wildcards.cohort,
        model=snakemake.wildcards.model,
        endpoint=snakemake.params.endpoint,
        kind=snakemake.params.kind,
        folds=fold_folders(snakemake.input.folds, asked),
        shuffled=list(repetitions.values()),
        patients=Path(snakemake.input.patients),
        splits=Path(snakemake.input.splits),
        output=Path(snakemake.output.row),
        calibration=Path(snakemake.output.calibration),
        bootstrap=snakemake.params.bootstrap,
        seed=snakemake.params.seed,
    )
