"""Bags of instances that are not slides: the tumour of MRI sequences, or instances described elsewhere.

The per-patient files of MRI are not declared as outputs: Snakemake would delete them when a job fails, and a rerun skips the valid ones.
"""


rule mri_features:
    input:
        given_bag(mri_table, "results/{cohort}/bags/{modality}.tsv"),
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
        table=lambda w: Source(mri_table(w)),
        files=lambda w: studies.mri_listing(bag_source(w), Source.contents),
        patient_id=lambda w: bag_source(w)["patient_id"],
        settings=of_bag("margin_mm", "max_slices", "slice_axis", "labels", "rows", "shape", "sequences"),
        encoder=of_bag("encoder"),
        encoders=compared(lambda s: s["encoders"]),
        entry=mri_encoder,
        running=of_bag("device", "precision", "batch_size", "threads"),
        code=code("mri_features"),
    script:
        "../scripts/mri_features.py"


rule bags:
    input:
        given_bag(
            lambda w: bag_source(w).get("file") or f"results/{w.cohort}/bags/{w.modality}.tsv",
            "results/{cohort}/bags/{modality}.h5",
        ),
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
        file=lambda w: by_content({"file": bag_source(w).get("file")}),
        arrays=of_bag("patient_id", "features"),
        code=code("bags"),
    script:
        "../scripts/bags.py"
