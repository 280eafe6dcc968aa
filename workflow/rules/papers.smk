"""What was published beside what this workflow gets: with the habit of the best epoch, and honestly."""


rule published:
    input:
        summaries=published_summaries,
    output:
        tsv="results/papers/omics.tsv",
        md="results/papers/omics.md",
    log:
        "results/papers/logs/omics.log",
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        rows=published(),
        code=code_version("pipeline.report.published"),
    script:
        "../scripts/published.py"
