"""Metrics with intervals from predictions alone, and the cohort's summary."""


rule evaluate:
    input:
        patients="results/{cohort}/cohort/patients.tsv",
        splits="results/{cohort}/cohort/splits.tsv",
        folds=fold_tables,
        shuffled=shuffled_tables,
    output:
        row="results/{cohort}/{model}/evaluation.tsv",
        calibration="results/{cohort}/{model}/calibration.tsv",
    log:
        "results/{cohort}/logs/evaluate_{model}.log",
    benchmark:
        "results/{cohort}/benchmarks/evaluate_{model}.tsv"
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        asked=lambda w: fold_settings_digest(settings_of_folds(w)),
        endpoint=setting("endpoint"),
        kind=of_study(studies.kind),
        bootstrap=setting("evaluation", "bootstrap"),
        seed=setting("seed"),
        code=code("evaluate"),
    script:
        "../scripts/evaluate.py"


rule compare:
    input:
        patients="results/{cohort}/cohort/patients.tsv",
        splits="results/{cohort}/cohort/splits.tsv",
        folds=all_fold_tables,
    output:
        comparison="results/{cohort}/comparison.tsv",
        ranks="results/{cohort}/ranks.tsv",
    log:
        "results/{cohort}/logs/compare.log",
    benchmark:
        "results/{cohort}/benchmarks/compare.tsv"
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        models=of_study(studies.models_to_run),
        bootstrap=setting("evaluation", "bootstrap"),
        seed=setting("seed"),
        code=code("compare"),
    script:
        "../scripts/compare.py"


rule summary:
    input:
        lambda w: model_files(w, "evaluation.tsv"),
    output:
        report(
            "results/{cohort}/summary.tsv",
            category="Summary",
            labels={"cohort": "{cohort}"},
            caption="../report/summary.rst",
        ),
    log:
        "results/{cohort}/logs/summary.log",
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        models=of_study(studies.models_to_run),
        not_run=of_study(studies.not_run),
        endpoint=setting("endpoint"),
        code=code("summary"),
    script:
        "../scripts/summary.py"


rule scenarios:
    input:
        patients="results/{cohort}/cohort/patients.tsv",
        splits="results/{cohort}/cohort/splits.tsv",
        folds=all_fold_tables,
        scenarios=lambda w: model_files(w, "scenarios.tsv"),
    output:
        "results/{cohort}/scenarios.tsv",
    log:
        "results/{cohort}/logs/scenarios.log",
    benchmark:
        "results/{cohort}/benchmarks/scenarios.tsv"
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        models=of_study(studies.models_to_run),
        bootstrap=setting("evaluation", "bootstrap"),
        seed=setting("seed"),
        code=code("scenarios"),
    script:
        "../scripts/scenarios.py"
