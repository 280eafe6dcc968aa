"""Molecular tables to one matrix by patient id, and genes to groups."""


rule omics_matrix:
    input:
        of_study(lambda s: [t["file"] for t in studies.omics_tables(s)]),
    output:
        matrix="results/{cohort}/omics/omics.h5",
        report="results/{cohort}/omics/tables.tsv",
    log:
        "results/{cohort}/logs/omics_matrix.log",
    benchmark:
        "results/{cohort}/benchmarks/omics_matrix.tsv"
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        tables=of_study(studies.omics_tables),
        code=code_version("pipeline.omics.matrix", "pipeline.omics.units", "pipeline.omics.symbols", "pipeline.tables"),
    script:
        "../scripts/omics_matrix.py"


rule gene_groups:
    input:
        matrix="results/{cohort}/omics/omics.h5",
        groups=of_study(lambda s: [g["file"] for g in studies.groupings(s).values()]),
        aliases=of_study(studies.aliases),
    output:
        groups="results/{cohort}/omics/groups.tsv",
        coverage="results/{cohort}/omics/coverage.tsv",
    log:
        "results/{cohort}/logs/gene_groups.log",
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        groupings=of_study(studies.groupings),
        code=code_version("pipeline.omics.groups", "pipeline.omics.matrix", "pipeline.omics.symbols", "pipeline.tables"),
    script:
        "../scripts/gene_groups.py"
