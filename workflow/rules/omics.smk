"""Molecular tables to one matrix by patient id, and genes to groups."""


rule omics_matrix:
    input:
        given(lambda s: [t["file"] for t in studies.omics_tables(s)], "results/{cohort}/omics/omics.h5"),
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
        tables=compared(studies.omics_tables),
        code=code("omics_matrix"),
    script:
        "../scripts/omics_matrix.py"


rule gene_groups:
    input:
        matrix="results/{cohort}/omics/omics.h5",
        groups=given(lambda s: [g["file"] for g in studies.groupings(s).values()], "results/{cohort}/omics/groups.tsv"),
        aliases=given(studies.aliases, "results/{cohort}/omics/groups.tsv"),
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
        groupings=compared(studies.groupings),
        aliases=lambda w: list(map(Source, studies.aliases(study(w.cohort)))),
        code=code("gene_groups"),
    script:
        "../scripts/gene_groups.py"
