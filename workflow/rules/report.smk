"""What the cohort's run has cost, and one self-contained page."""


# The benchmark files are read from their folder: Snakemake takes no benchmark of a job as an input of another. The inputs below are the
# last files that measured jobs make, so all of these have ended.
rule resources:
    input:
        summary="results/{cohort}/summary.tsv",
        comparison="results/{cohort}/comparison.tsv",
        scenarios=scenario_table,
    output:
        "results/{cohort}/resources.tsv",
    log:
        "results/{cohort}/logs/resources.log",
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        scenarios=lambda w: scenario_table(w) != [],
        code=code("resources"),
    script:
        "../scripts/resources.py"


rule report_page:
    input:
        summary="results/{cohort}/summary.tsv",
        folds=all_fold_tables,
        patients="results/{cohort}/cohort/patients.tsv",
        flow="results/{cohort}/cohort/flow.tsv",
        excluded="results/{cohort}/excluded.tsv",
        splits="results/{cohort}/cohort/splits.tsv",
        comparison="results/{cohort}/comparison.tsv",
        ranks="results/{cohort}/ranks.tsv",
        calibration=lambda w: model_files(w, "calibration.tsv"),
        omics_tables=lambda w: [f"results/{w.cohort}/omics/tables.tsv"] if matrix(w) else [],
        scenarios=scenario_table,
        manifest=manifest,
        quality=quality,
        resources="results/{cohort}/resources.tsv",
    output:
        page=report(
            "results/{cohort}/report.html",
            category="Report",
            labels={"cohort": "{cohort}"},
            caption="../report/report.rst",
        ),
    log:
        "results/{cohort}/logs/report_page.log",
    benchmark:
        "results/{cohort}/benchmarks/report_page.tsv"
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        title=setting("title"),
        models=of_study(studies.models_to_run),
        folds=of_study(studies.fold_count),
        kind=of_study(studies.kind),
        reference=of_study(studies.reference),
        settings=of_study(studies.report_settings),
        code=code("report_page"),
    script:
        "../scripts/report_page.py"
