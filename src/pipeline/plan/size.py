"""How large a study is: its slides, patients and patches, and how that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import study as studies
from pipeline.errors import InputError
from pipeline.plan.rates import Rates
from pipeline.tables import numeric, read_rows, read_table


@dataclass(frozen=True)
class Size:
    """slides: listed. patients: of the cohort, or of the follow-up before anybody is dropped. patches: of a slide, on average."""

    slides: int
    patients: int
    patches: float
    known: tuple[str, ...]

    @property
    def all_patches(self) -> float:
        return self.slides * self.patches


def measure(study: Mapping[str, Any], demo: Mapping[str, Any], rates: Rates, results: Path) -> Size:
    """The size of a study by its tables and by what an earlier run has left in `results` (``results/<cohort>``).

    demo: the block of ``config.yaml`` that describes the synthetic cohort. Raises `InputError` for tables that cannot be read, and when
    nothing tells how many patients there are.
    """
    slides, of_slides = _slides(study, demo)
    patients, of_patients = _patients(study, demo, slides, results)
    patches, of_patches = _patches(study, rates, results) if slides else (0.0, "")
    known = (f"{len(slides):,} slides, {of_slides}" if slides else "no slides", f"{patients:,} patients, {of_patients}")
    return Size(len(slides), patients, patches, (*known, f"{patches:,.0f} patches a slide, {of_patches}") if slides else known)


def slide_manifests(results: Path, stage: str) -> list[Path]:
    """The manifests that a stage of the slides has left."""
    return sorted((results / "slides" / stage).glob("chunk*.tsv"))


def _slides(study: Mapping[str, Any], demo: Mapping[str, Any]) -> tuple[list[str], str]:
    """A patient for each slide, and where they are listed."""
    if "wsi" not in studies.modalities(study):
        return [], ""
    if study["synthetic"]:
        from pipeline.demo.plan import make_plan

        return [slide.patient_id for slide in make_plan(demo["patients"], demo["seed"]).slides], "planned by the demo"
    from pipeline.doctor.intake import listed_slides  # it brings the readers of every table and slide

    made = studies.made_features(study)
    where = study["slides"]["table"] or (made["folder"] if made else studies.slide_folder(study))
    return list(listed_slides(study)["patient_id"]), f"listed by {where}"


def _patients(study: Mapping[str, Any], demo: Mapping[str, Any], slides: list[str], results: Path) -> tuple[int, str]:
    joined = results / "cohort" / "patients.tsv"
    if joined.is_file():
        return len(read_table(joined)), "joined by an earlier run"
    if study["synthetic"]:
        return demo["patients"], "planned by the demo"
    if study["endpoints"] and studies.has_data(study):
        table = studies.endpoint(study)["file"]
        return sum(1 for _ in read_rows(table)) - 1, f"rows of {table}"
    if slides:
        return len(set(slides)), "of whom slides are listed"
    raise InputError("no table says how many patients there are", file=studies.endpoint(study)["file"], remedy="Check `data_dir`.")


def _patches(study: Mapping[str, Any], rates: Rates, results: Path) -> tuple[float, str]:
    """Patches a slide: of the slides done so far, where a slide that failed has none, or of an assumed area of tissue."""
    slides = study["slides"]
    done = slide_manifests(results, f"features/{slides['encoder']}" if slides["features"] else "patches")
    if done:
        counts = [numeric(read_table(file, ["patches"]), "patches", file)["patches"].fillna(0) for file in done]
        found = [count for column in counts for count in column]
        if found:
            return sum(found) / len(found), f"mean of {len(found):,} slides under {done[0].parent}"
    area = rates.of("slides.demo_tissue_mm2" if study["synthetic"] else "slides.tissue_mm2")
    grid = slides["patches"]
    step = (grid.get("step") or grid["patch_size"]) * grid["target_mpp"]
    return area / (step / 1000) ** 2, f"assumed: {area:g} mm² of tissue, a patch every {step:g} µm"
