import json
from pathlib import Path

from pipeline import __version__
from pipeline.cohort.splits import read_splits, splits_digest
from pipeline.files import sha256
from pipeline.logs import logged
from pipeline.report.page import write_report

with logged(snakemake.log[0]):
    p, page = snakemake.params, Path(snakemake.output.page)
    results = page.parent
    manifests = [Path(file) for file in snakemake.input.get("manifest") or []]
    write_report(
        cohort=snakemake.wildcards.cohort,
        title=p.title,
        summary=Path(snakemake.input.summary),
        models={model: [results / model / f"fold{k}" for k in range(p.folds)] for model in p.models},
        patients=Path(snakemake.input.patients),
        splits=Path(snakemake.input.splits),
        flow=Path(snakemake.input.flow),
        excluded=Path(snakemake.input.excluded),
        output=page,
        figures=results / "figures",
        manifests=manifests,
        quality=next((Path(file) for file in snakemake.input.get("quality") or []), None),
        overlays=sorted((results / "slides" / "tissue").glob("*.png")) if manifests else [],
        provenance={
            "slide2surv": __version__,
            "splits sha256": splits_digest(read_splits(snakemake.input.splits)),
            "summary sha256": sha256(snakemake.input.summary),
            "settings": json.loads(json.dumps(p.settings)),
        },
    )
