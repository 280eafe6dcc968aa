"""Slides to features: one job handles a chunk of slides, one file a slide, one manifest a chunk.

The per-slide files are not declared as outputs: Snakemake would delete them when a job fails, and a rerun skips those that are valid.
The features of a finished chunk are linked into a folder that is one, so that workflows can share it.
"""


rule list_slides:
    input:
        table=given(studies.slide_table, "results/{cohort}/slides/slides.tsv"),
    output:
        "results/{cohort}/slides/slides.tsv",
    log:
        "results/{cohort}/logs/list_slides.log",
    conda:
        TORCH_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        folder=slide_folder,
        made=compared(studies.made_features),
        table=compared(lambda s: {"table": next(iter(studies.slide_table(s)), None)}),
        pattern=setting("slides", "pattern"),
        patient_id_pattern=setting("slides", "patient_id_pattern"),
        listing=of_study(lambda s: studies.folder_listing(s, Source.contents)),
        code=code("list_slides"),
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
        TORCH_ENV
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
        slide_io=1,
    params:
        chunks=setting("slides", "chunks"),
        mpp=setting("slides", "mpp"),
        settings=setting("slides", "tissue"),
        quality=setting("slides", "quality"),
        folder=slide_folder,
        masks=compared(studies.masks),
        mask_listing=of_study(lambda s: studies.mask_listing(s, Source.contents)),
        drawn=drawn_contours,
        md5sums=md5sums,
        check=setting("slides", "check_levels"),
        patience=setting("slides", "patience"),
        code=code("tissue"),
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
        TORCH_ENV
    threads: 1
    resources:
        mem_mb=2000,
        runtime=120,
    params:
        folder=slide_folder,
        chunks=setting("slides", "chunks"),
        settings=setting("slides", "patches"),
        masks=compared(studies.masks),
        patience=setting("slides", "patience"),
        code=code("patches"),
    script:
        "../scripts/patches.py"


# It measures itself: Snakemake allows no `benchmark:` where a cache may take the place of the job.
rule features:
    input:
        slides="results/{cohort}/slides/slides.tsv",
        patches=own_chunk,
    output:
        directory("results/{cohort}/slides/features/{encoder}/chunk{chunk}"),
    log:
        "results/{cohort}/logs/features_{encoder}_{chunk}.log",
    cache: "omit-software"
    conda:
        TORCH_ENV
    threads: of_study(lambda s: max(s["slides"]["threads"], s["slides"]["readers"]))
    resources:
        mem_mb=8000,
        runtime=1440,
        gpu=encoder_gpus,
        slide_io=1,
    params:
        chunk=lambda w: w.chunk,  # beside the wildcards: --cache tells jobs apart by parameters
        encoder=lambda w: w.encoder,
        folder=slide_folder,
        chunks=setting("slides", "chunks"),
        made=of_study(lambda s: studies.made_features(s) is not None),
        encoders=lambda w: by_content({w.encoder: study(w.cohort)["encoders"].get(w.encoder, {})}),
        encoding=encoding,
        running=of_study(studies.encoder_running),
        reading=of_study(studies.patch_reading),
        code=code("features"),
    script:
        "../scripts/features.py"


rule slide_quality:
    input:
        slides="results/{cohort}/slides/slides.tsv",
        tissue=chunk_files("tissue"),
        patches=chunk_files("patches"),
    output:
        table="results/{cohort}/slides/qc.tsv",
        sheets=directory("results/{cohort}/slides/contact_sheets"),
    log:
        "results/{cohort}/logs/slide_quality.log",
    conda:
        TORCH_ENV
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        chunks=setting("slides", "chunks"),
        code=code("slide_quality"),
    script:
        "../scripts/slide_quality.py"


rule slide_manifest:
    input:
        slides="results/{cohort}/slides/slides.tsv",
        tissue=own_chunk_files("tissue"),
        patches=own_chunk_files("patches"),
        features=encoded_chunks,
    output:
        "results/{cohort}/slides/manifest-{encoder}.tsv",
    log:
        "results/{cohort}/logs/slide_manifest_{encoder}.log",
    conda:
        TORCH_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        chunks=setting("slides", "chunks"),
        manifests=encoded_manifests,
        code=code("slide_manifest"),
    script:
        "../scripts/slide_manifest.py"
