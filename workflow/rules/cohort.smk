"""Follow-up joined with what each patient has, and the splits."""


rule patients:
    input:
        followup=of_study(lambda s: studies.endpoint(s)["file"]),
        tables=of_study(lambda s: [t["file"] for t in studies.tables(s).values()]),
        include=of_study(lambda s: [condition["table"] for condition in studies.included(s)]),
        matrix=matrix,
        bags=bags,
        manifest=manifest,
    output:
        patients="results/{cohort}/cohort/patients.tsv",
        flow="results/{cohort}/cohort/flow.tsv",
        excluded="results/{cohort}/excluded.tsv",
    log:
        "results/{cohort}/logs/patients.log",
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        endpoint=of_study(studies.endpoint),
        tables=of_study(studies.tables),
        include=of_study(studies.included),
        min_share=setting("min_share"),
        code=code_version(
            "pipeline.cohort.followup",
            "pipeline.cohort.patients",
            "pipeline.cohort.vectors",
            "pipeline.cohort.labels",
            "pipeline.cohort.bags",
            "pipeline.tables",
        ),
    script:
        "../scripts/patients.py"


rule splits:
    input:
        patients="results/{cohort}/cohort/patients.tsv",
        lists=of_study(studies.split_files),
    output:
        "results/{cohort}/cohort/splits.tsv",
    log:
        "results/{cohort}/logs/splits.log",
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        splits=of_study(studies.splits),
        seed=setting("seed"),
        code=code_version(
            "pipeline.cohort.splits",
            "pipeline.cohort.dealing",
            "pipeline.cohort.split_lists",
            "pipeline.seeds",
            "pipeline.tables",
        ),
    script:
        "../scripts/splits.py"
