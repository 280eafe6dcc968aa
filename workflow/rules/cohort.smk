"""Follow-up joined with what each patient has, and the splits."""

PATIENTS, SPLITS = "results/{cohort}/cohort/patients.tsv", "results/{cohort}/cohort/splits.tsv"


rule patients:
    input:
        followup=given(lambda s: [studies.endpoint(s)["file"]], PATIENTS),
        tables=given(lambda s: [t["file"] for t in studies.tables(s).values()], PATIENTS),
        include=given(lambda s: [condition["table"] for condition in studies.included(s)], PATIENTS),
        matrix=matrix,
        bags=bags,
        manifest=manifest,
    output:
        patients=PATIENTS,
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
        endpoint=compared(studies.endpoint),
        tables=compared(studies.tables),
        include=compared(studies.included),
        modalities=of_study(studies.modalities),
        min_share=setting("min_share"),
        code=code("patients"),
    script:
        "../scripts/patients.py"


rule splits:
    input:
        patients=PATIENTS,
        lists=given(studies.split_files, SPLITS),
    output:
        SPLITS,
    log:
        "results/{cohort}/logs/splits.log",
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        splits=compared(studies.splits),
        lists=lambda w: [Source(file) for file in or_stop(studies.split_files, study(w.cohort))],
        seed=setting("seed"),
        code=code("splits"),
    script:
        "../scripts/splits.py"
