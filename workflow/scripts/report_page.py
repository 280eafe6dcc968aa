import json
from pathlib import Path

from pipeline import __version__
from pipeline.cohort.splits import read_splits, splits_digest
from pipeline.files import sha256
from pipeline.logs import logged
from pipeline.report.page import write_report


def given(name: str) -> list[Path]:
    """The files of a named input: none, one or many."""
    files = snakemake.input.get(name) or []
    return [Path(file) for file in ([files] if isinstance(files, str) else files)]


with logged(snakemake.log[0]):
    p, page = snakemake.params, Path(snakemake.output.page)
    results = page.parent
    write_report(
        cohort=snakemake.wildcards.cohort,
        title=p.title,
        kind=p.kind,
        reference=p.reference,
        summary=Path(snakemake.input.summary),
        models={model: [results / model / f"fold{k}" for k in range(p.folds)] for model in p.models},
        patients=Path(snakemake.input.patients),
        splits=Path(snakemake.input.splits),
        flow=Path(snakemake.input.flow),
        excluded=Path(snakemake.input.excluded),
        output=page,
        figures=results / "figures",
        comparison=next(iter(given("comparison")), None),
        ranks=next(iter(given("ranks")), None),
        calibration={path.parent.name: path for path in given("calibration")},
        omics_tables=next(iter(given("omics_tables")), None),
        scenarios=next(iter(given("scenarios")), None),
        manifests=given("manifest"),
        quality=next(iter(given("quality")), None),
        resources=next(iter(given("resources")), None),
        overlays=sorted((results / "slides" / "tissue").glob("*.png")) if given("manifest") else [],
        provenance={
            "slide2surv": __version__,
            "splits sha256": splits_digest(read_splits(snakemake.input.splits)),
            "summary sha256": sha256(snakemake.input.summary),
            "settings": json.loads(json.dumps(p.settings)),
        },
    )
