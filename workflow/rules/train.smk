"""One model, one fold: from the cohort's files to predictions of the held-out patients."""


rule train_fold:
    input:
        patients="results/{cohort}/cohort/patients.tsv",
        splits="results/{cohort}/cohort/splits.tsv",
        matrix=matrix,
        groups=lambda w: [f"results/{w.cohort}/omics/groups.tsv"] if matrix(w) else [],
        manifest=manifest,
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
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=480,
        gpu=0,
    params:
        settings=lambda w: or_stop(studies.fold_settings, study(w.cohort), w.model),
        code=code_version(
            "pipeline.training", "pipeline.nn", "pipeline.models", "pipeline.cohort", "pipeline.omics.scaling"
        ),
    script:
        "../scripts/train_fold.py"
