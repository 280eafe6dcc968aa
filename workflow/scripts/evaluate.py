from pathlib import Path

from pipeline.evaluation.model import evaluate_model
from pipeline.logs import logged

repetitions = {}
for file in map(Path, snakemake.input.get("shuffled", [])):
    repetitions.setdefault(file.parents[1], []).append(file.parent)

with logged(snakemake.log[0]):
    evaluate_model(
        cohort=snakemake.wildcards.cohort,
        model=snakemake.wildcards.model,
        endpoint=snakemake.params.endpoint,
        kind=snakemake.params.kind,
        folds=[Path(file).parent for file in snakemake.input.model],
        shuffled=list(repetitions.values()),
        patients=Path(snakemake.input.patients),
        splits=Path(snakemake.input.splits),
        output=Path(snakemake.output.row),
        calibration=Path(snakemake.output.calibration),
        bootstrap=snakemake.params.bootstrap,
        seed=snakemake.params.seed,
    )
