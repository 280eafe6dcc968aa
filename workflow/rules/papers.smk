"""What was published beside what this workflow gets: with the habit of the best epoch, and honestly."""


rule published:
    input:
        summaries=published_summaries,
    output:
        tsv="results/papers/{paper}.tsv",
        md="results/papers/{paper}.md",
    log:
        "results/papers/logs/{paper}.log",
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        rows=lambda w: published(w.paper),
        summaries=lambda w: list(published_summaries(w)),
        code=code("published"),
    script:
        "../scripts/published.py"
