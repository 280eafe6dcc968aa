from pathlib import Path

from pipeline.evaluation.model import evaluate_model
from pipeline.logs import logged

with logged(snakemake.log[0]):
    evaluate_model(
        cohort=snakemake.wildcards.cohort,
        model=snakemake.wildcards.model,
        endpoint=snakemake.params.endpoint,
        folds=[Path(file).parent for file in snakemake.input.model],
        patients=Path(snakemake.input.patients),
        splits=Path(snakemake.input.splits),
        output=Path(snakemake.output[0]),
        bootstrap=snakemake.params.bootstrap,
        seed=snakemake.params.seed,
    )
