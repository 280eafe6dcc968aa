"""One model, one fold: from the cohort's files to predictions of the held-out patients; the same on permuted labels."""

TRAINING = code_version(
    "pipeline.training",
    "pipeline.nn",
    "pipeline.models",
    "pipeline.cohort",
    "pipeline.omics.scaling",
    "pipeline.omics.selection",
)


rule train_fold:
    input:
        patients="results/{cohort}/cohort/patients.tsv",
        splits="results/{cohort}/cohort/splits.tsv",
        matrix=matrix,
        groups=lambda w: [f"results/{w.cohort}/omics/groups.tsv"] if matrix(w) else [],
        manifest=manifest,
        bags=bags,
        tables=of_study(lambda s: [t["file"] for t in studies.tables(s).values()]),
    output:
        predictions="results/{cohort}/{model}/fold{fold}/predictions.tsv",
        history="results/{cohort}/{model}/fold{fold}/history.tsv",
        weights="results/{cohort}/{model}/fold{fold}/model.safetensors",
        model="results/{cohort}/{model}/fold{fold}/model.yaml",
    log:
        "results/{cohort}/logs/train_{model}_{fold}.log",
    benchmark:
        "results/{cohort}/benchmarks/train_{model}_{fold}.tsv"
    conda:
        TORCH_ENV
    threads: 1
    resources:
        mem_mb=8000,
        runtime=480,
        gpu=0,
    params:
        settings=lambda w: or_stop(studies.fold_settings, study(w.cohort), w.model),
        code=TRAINING,
    script:
        "../scripts/train_fold.py"


use rule train_fold as train_shuffled with:
    output:
        predictions="results/{cohort}/{model}/shuffled{repetition}/fold{fold}/predictions.tsv",
        history="results/{cohort}/{model}/shuffled{repetition}/fold{fold}/history.tsv",
        weights="results/{cohort}/{model}/shuffled{repetition}/fold{fold}/model.safetensors",
        model="results/{cohort}/{model}/shuffled{repetition}/fold{fold}/model.yaml",
    log:
        "results/{cohort}/logs/train_{model}_shuffled{repetition}_{fold}.log",
    benchmark:
        "results/{cohort}/benchmarks/train_{model}_shuffled{repetition}_{fold}.tsv"
    params:
        settings=lambda w: or_stop(studies.fold_settings, study(w.cohort), w.model, int(w.repetition)),
        code=TRAINING,


rule predict_scenarios:
    input:
        patients="results/{cohort}/cohort/patients.tsv",
        splits="results/{cohort}/cohort/splits.tsv",
        matrix=matrix,
        groups=lambda w: [f"results/{w.cohort}/omics/groups.tsv"] if matrix(w) else [],
        manifest=manifest,
        bags=bags,
        tables=of_study(lambda s: [t["file"] for t in studies.tables(s).values()]),
        weights=fold_files("model.safetensors"),
        model=fold_files("model.yaml"),
    output:
        "results/{cohort}/{model}/scenarios.tsv",
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
        settings=lambda w: or_stop(studies.fold_settings, study(w.cohort), w.model),
        missing=of_study(studies.missing),
        code=TRAINING,
    script:
        "../scripts/predict_scenarios.py"
