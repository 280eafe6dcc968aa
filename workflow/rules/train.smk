"""One model on folds of the study: from the cohort's files to predictions of the held-out patients; the same on permuted labels.

A job takes the folds that its name lists (`0-4`, `3`) and forks a process for each. Their files are not declared as outputs: Snakemake
would delete those of all folds when one fails, and a rerun keeps the finished ones. The output is the table of the job's folds.
"""

FOLDS = "results/{cohort}/{model}/folds_{part}.tsv"
SCENARIOS = "results/{cohort}/{model}/scenarios.tsv"


rule train_fold:
    input:
        patients="results/{cohort}/cohort/patients.tsv",
        splits="results/{cohort}/cohort/splits.tsv",
        matrix=matrix,
        groups=lambda w: [f"results/{w.cohort}/omics/groups.tsv"] if matrix(w) else [],
        manifest=manifest,
        bags=bags,
        tables=given(lambda s: [t["file"] for t in studies.tables(s).values()], FOLDS),
    output:
        FOLDS,
    log:
        "results/{cohort}/logs/train_{model}_{part}.log",
    conda:
        TORCH_ENV
    threads: 1
    resources:
        mem_mb=8000,
        runtime=480,
        gpu=0,
    params:
        settings=settings_of_folds,
        torch=SETTINGS["torch"],
        folds=of_study(studies.fold_count),
        shuffled=False,
        code=code_of_model("train_fold"),
    script:
        "../scripts/train_fold.py"


use rule train_fold as train_shuffled with:
    output:
        "results/{cohort}/{model}/shuffled_{part}.tsv",
    log:
        "results/{cohort}/logs/train_{model}_shuffled_{part}.log",
    params:
        settings=settings_of_folds,
        torch=SETTINGS["torch"],
        folds=of_study(studies.fold_count),
        shuffled=True,
        code=code_of_model("train_fold"),


rule predict_scenarios:
    input:
        patients="results/{cohort}/cohort/patients.tsv",
        splits="results/{cohort}/cohort/splits.tsv",
        matrix=matrix,
        groups=lambda w: [f"results/{w.cohort}/omics/groups.tsv"] if matrix(w) else [],
        manifest=manifest,
        bags=bags,
        tables=given(lambda s: [t["file"] for t in studies.tables(s).values()], SCENARIOS),
        folds=fold_tables,
    output:
        SCENARIOS,
    log:
        "results/{cohort}/logs/predict_scenarios_{model}.log",
    benchmark:
        "results/{cohort}/benchmarks/predict_scenarios_{model}.tsv"
    conda:
        TORCH_ENV
    threads: 1
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=0,
    params:
        settings=settings_of_folds,
        torch=SETTINGS["torch"],
        missing=of_study(studies.missing),
        code=code_of_model("predict_scenarios"),
    script:
        "../scripts/predict_scenarios.py"
