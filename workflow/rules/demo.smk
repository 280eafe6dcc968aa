"""The synthetic cohort: tables and slides with a planted truth."""

DEMO = "results/demo/data"


rule demo_tables:
    output:
        clinical=f"{DEMO}/clinical.tsv",
        expression=f"{DEMO}/expression.tsv.gz",
        cnv=f"{DEMO}/cnv.tsv",
        mutation=f"{DEMO}/mutation.tsv",
        families=f"{DEMO}/families.tsv",
        pathways=f"{DEMO}/pathways.gmt",
        slides=f"{DEMO}/slides.tsv",
        truth=f"{DEMO}/truth.tsv",
    log:
        "results/demo/logs/demo_tables.log",
    benchmark:
        "results/demo/benchmarks/demo_tables.tsv"
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        patients=SETTINGS["demo"]["patients"],
        seed=SETTINGS["demo"]["seed"],
        null=SETTINGS["demo"]["null"],
        code=code("demo_tables"),
    script:
        "../scripts/demo_tables.py"


rule demo_slides:
    output:
        f"{DEMO}/made/chunk{{chunk}}.tsv",
    log:
        "results/demo/logs/demo_slides_{chunk}.log",
    benchmark:
        "results/demo/benchmarks/demo_slides_{chunk}.tsv"
    conda:
        TORCH_ENV
    threads: 1
    resources:
        mem_mb=1500,
        runtime=20,
    params:
        folder=lambda w, output: str(Path(output[0]).parents[1]),
        patients=SETTINGS["demo"]["patients"],
        seed=SETTINGS["demo"]["seed"],
        chunks=len(chunks("demo")),
        code=code("demo_slides"),
    script:
        "../scripts/demo_slides.py"
