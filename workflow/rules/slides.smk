"""Slides to features: one job handles a chunk of slides, one file a slide, one manifest a chunk.

The per-slide files are not declared as outputs: Snakemake would delete them when a job fails, and a rerun skips those that are valid.
"""


rule list_slides:
    input:
        table=slide_table,
    output:
        "results/{cohort}/slides/slides.tsv",
    log:
        "results/{cohort}/logs/list_slides.log",
    conda:
        "../../envs/slides.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        folder=of_study(lambda s: studies.data_path(s, s["slides"]["folder"])),
        pattern=setting("slides", "pattern"),
        patient_id_pattern=setting("slides", "patient_id_pattern"),
        listing=of_study(studies.folder_listing),
        code=code_version("pipeline.slides.listing", "pipeline.tables"),
    script:
        "../scripts/list_slides.py"


rule tissue:
    input:
        slides="results/{cohort}/slides/slides.tsv",
        made=slide_files,
    output:
        "results/{cohort}/slides/tissue/chunk{chunk}.tsv",
    log:
        "results/{cohort}/logs/tissue_{chunk}.log",
    benchmark:
        "results/{cohort}/benchmarks/tissue_{chunk}.tsv"
    conda:
        "../../envs/slides.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        chunks=setting("slides", "chunks"),
        mpp=setting("slides", "mpp"),
        settings=setting("slides", "tissue"),
        code=code_version("pipeline.slides.opening", "pipeline.slides.tissue", "pipeline.slides.contours"),
    script:
        "../scripts/tissue.py"


rule patches:
    input:
        slides="results/{cohort}/slides/slides.tsv",
        tissue="results/{cohort}/slides/tissue/chunk{chunk}.tsv",
    output:
        "results/{cohort}/slides/patches/chunk{chunk}.tsv",
    log:
        "results/{cohort}/logs/patches_{chunk}.log",
    benchmark:
        "results/{cohort}/benchmarks/patches_{chunk}.tsv"
    conda:
        "../../envs/slides.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=120,
    params:
        chunks=setting("slides", "chunks"),
        settings=setting("slides", "patches"),
        code=code_version("pipeline.slides.patches", "pipeline.slides.contours"),
    script:
        "../scripts/patches.py"


rule features:
    input:
        slides="results/{cohort}/slides/slides.tsv",
        patches="results/{cohort}/slides/patches/chunk{chunk}.tsv",
    output:
        "results/{cohort}/slides/features/{encoder}/chunk{chunk}.tsv",
    log:
        "results/{cohort}/logs/features_{encoder}_{chunk}.log",
    benchmark:
        "results/{cohort}/benchmarks/features_{encoder}_{chunk}.tsv"
    conda:
        "../../envs/slides.yaml"
    threads: setting("slides", "threads")
    resources:
        mem_mb=8000,
        runtime=1440,
        gpu=encoder_gpus,
    params:
        chunks=setting("slides", "chunks"),
        encoders=setting("encoders"),
        batch_size=setting("slides", "batch_size"),
        threads=setting("slides", "threads"),
        max_bad_share=setting("slides", "max_bad_share"),
        code=code_version(
            "pipeline.slides.encoders",
            
            "pipeline.slides.stages.features",
            "pipeline.slides.features",
        ),
    script:
        "../scripts/features.py"


rule slide_manifest:
    input:
        slides="results/{cohort}/slides/slides.tsv",
        tissue=chunk_files("tissue"),
        patches=chunk_files("patches"),
        features=chunk_files("features/{encoder}"),
    output:
        "results/{cohort}/slides/manifest-{encoder}.tsv",
    log:
        "results/{cohort}/logs/slide_manifest_{encoder}.log",
    conda:
        "../../envs/slides.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    script:
        "../scripts/slide_manifest.py"
