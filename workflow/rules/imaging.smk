"""Bags of instances that are not slides: the tumour of MRI sequences, or instances described elsewhere.

The per-patient files of MRI are not declared as outputs: Snakemake would delete them when a job fails, and a rerun skips the valid ones.
"""


rule mri_features:
    input:
        mri_table,
    output:
        "results/{cohort}/bags/{modality}.tsv",
    log:
        "results/{cohort}/logs/mri_features_{modality}.log",
    benchmark:
        "results/{cohort}/benchmarks/mri_features_{modality}.tsv"
    conda:
        TORCH_ENV
    threads: lambda w: bag_source(w).get("threads", 1)
    resources:
        mem_mb=6000,
        runtime=720,
        gpu=mri_gpus,
    params:
        files=lambda w: studies.mri_listing(bag_source(w)),
        patient_id=lambda w: bag_source(w)["patient_id"],
        settings=of_bag("margin_mm", "max_slices", "slice_axis", "labels", "rows", "shape", "sequences"),
        encoder=of_bag("encoder"),
        encoders=setting("encoders"),
        running=of_bag("device", "precision", "batch_size", "threads"),
        code=code_version("pipeline.imaging", "pipeline.cohort.bags", "pipeline.slides.encoders"),
    script:
        "../scripts/mri_features.py"


rule bags:
    input:
        lambda w: bag_source(w).get("file") or f"results/{w.cohort}/bags/{w.modality}.tsv",
    output:
        "results/{cohort}/bags/{modality}.h5",
    log:
        "results/{cohort}/logs/bags_{modality}.log",
    conda:
        TORCH_ENV
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        made=lambda w: "file" in bag_source(w),
        arrays=of_bag("patient_id", "features"),
        code=code_version("pipeline.cohort.bags", "pipeline.tables"),
    script:
        "../scripts/bags.py"
