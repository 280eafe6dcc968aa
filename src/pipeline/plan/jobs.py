"""How many jobs of each rule a cohort's run has, counted from its study alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import study as studies
from pipeline.jobs.finished import parts


def count_jobs(study: Mapping[str, Any], folds_per_job: int | None = None) -> dict[str, int]:
    """Rule → jobs of a first run that makes ``summary.tsv`` and ``report.html``, in the workflow's order.

    folds_per_job: where the study does not say it; None = all folds of a model, as on one machine.

    Of a cohort without follow-up, the features alone: its manifest and ``slides/qc.tsv``. Jobs that retrieve tables are not counted.
    Raises `InputError` when none of the study's models can run.
    """
    chunks, wsi, made = study["slides"]["chunks"], "wsi" in studies.modalities(study), studies.made_features(study) is not None
    opened, synthetic = wsi and not made, bool(study["synthetic"])
    counts = {
        "demo_tables": synthetic,
        "demo_slides": synthetic * chunks,
        "list_slides": wsi,
        "tissue": opened * chunks,
        "patches": opened * chunks,
        "features": wsi * chunks,
        "slide_quality": opened,
        "slide_manifest": wsi,
        **(_modelling(study, folds_per_job) if study["endpoints"] else {}),
    }
    return {rule: int(count) for rule, count in counts.items() if count}


def _modelling(study: Mapping[str, Any], folds_per_job: int | None) -> dict[str, int]:
    models, folds, per_job = len(studies.models_to_run(study)), studies.fold_count(study), studies.folds_per_job(study, folds_per_job)
    omics, scenarios = bool(study["omics"]["tables"]), bool(study["missing"]["scenarios"])
    return {
        "mri_features": sum("file" not in bag for bag in study["bags"].values()),
        "bags": len(study["bags"]),
        "omics_matrix": omics,
        "gene_groups": omics,
        "patients": 1,
        "splits": 1,
        "train_fold": models * len(parts(folds, per_job)),
        "train_shuffled": models * len(parts(folds * study["controls"]["shuffled_labels"], per_job)),
        "predict_scenarios": scenarios * models,
        "evaluate": models,
        "compare": 1,
        "scenarios": scenarios,
        "summary": 1,
        "resources": 1,
        "report_page": 1,
    }
