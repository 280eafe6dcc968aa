"""The slides of a cohort: a sample of them is opened and segmented as the workflow would do it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.doctor.findings import FAIL, OK, WARN, Finding, some
from pipeline.errors import InputError
from pipeline.machine import MachineError
from pipeline.slides.masks import MaskSettings, outside_tissue
from pipeline.slides.opening import Slide
from pipeline.slides.patches import PatchSettings, lay_patches, level0_size
from pipeline.slides.resolution import resolve
from pipeline.slides.stages.manifests import FAILED, OUTCOME, run_slides
from pipeline.slides.tissue import TissueSettings, find_tissue, tissue_mm2
from pipeline.tables import numeric, read_table

FACTS = ["stage", "problem", "advice", "vendor", "width", "height", "mpp", "mpp_source", "tissue_mm2", "patches", "seconds"]
NUMBERS = ["width", "height", "mpp", "tissue_mm2", "patches", "seconds"]
STAGES = {  # stage at which a slide fails → what is said of it
    "opening": "cannot be opened",
    "resolution": "have no usable resolution",
    "scale": "are coarser than the target",
    "tissue": "have no tissue",
    "patches": "have no patches",
    "crash": "met an error that was not foreseen",
}


@dataclass(frozen=True)
class Laid:
    """The patches of a slide: corners [N, 2], side in level-0 pixels, area of the tissue."""

    coords: np.ndarray
    side: int
    tissue_mm2: float


def sample(slides: pd.DataFrame, count: int | None) -> pd.DataFrame:
    """`count` rows spread evenly over the list; all of them with None."""
    if count is None or count >= len(slides):
        return slides
    return slides.iloc[np.unique(np.linspace(0, len(slides) - 1, count).round().astype(int))]


def lay(slide: Slide, mpp: float, settings: Mapping[str, Any]) -> Laid:
    """The patches that the workflow would lay, `settings` being the study's block `slides`."""
    slide_id, masks = slide.path.stem, MaskSettings(**settings["masks"])
    given = outside_tissue(masks.folder, slide_id, slide.dimensions, masks) if masks.folder else None
    polygons = find_tissue(slide, mpp, TissueSettings(**settings["tissue"]), given).polygons
    coords, side = lay_patches(polygons, slide.dimensions, mpp, PatchSettings(**settings["patches"]), slide_id)
    return Laid(coords, side, tissue_mm2(polygons, mpp))


def probe(slides: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    """One row a slide: slide_id, patient_id, path and `FACTS`; `stage` is where it fails (empty: it does not), `problem` says why."""

    def process(row: dict) -> dict[str, object]:
        start, facts = time.perf_counter(), {"stage": "opening"}
        try:
            _probe(row, settings, facts)
        except (InputError, MachineError) as error:
            facts |= {"problem": error.reason, "advice": error.remedy}
        return facts | {"seconds": time.perf_counter() - start}

    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "doctor.tsv"
        run_slides("doctor", slides, process, FACTS, manifest)
        table = read_table(manifest, [*OUTCOME, *FACTS])
        table[NUMBERS] = numeric(table, NUMBERS, manifest)
    broken = table["status"] == FAILED  # not foreseen: a crash, or an error of another kind
    table.loc[broken, "stage"] = "crash"
    table.loc[broken, ["problem", "advice"]] = table.loc[broken, ["reason", "remedy"]].to_numpy()
    return slides[["slide_id", "patient_id", "path"]].merge(table[["slide_id", *FACTS]], on="slide_id")


def _probe(row: Mapping[str, Any], settings: Mapping[str, Any], facts: dict[str, object]) -> None:
    """Add to `facts`, stage by stage, what is found; `stage` is the one under way."""
    with Slide(row["path"]) as slide:
        facts |= {"vendor": slide.properties.get("openslide.vendor", ""), "width": slide.dimensions[0], "height": slide.dimensions[1]}
        facts["stage"] = "resolution"
        resolution = resolve(slide.properties, row["slide_id"], row.get("mpp"), settings["mpp"])
        facts |= {"mpp": resolution.mpp, "mpp_source": resolution.source, "stage": "scale"}
        level0_size(1, resolution.mpp, PatchSettings(**settings["patches"]), row["slide_id"])
        facts["stage"] = "patches"
        laid = lay(slide, resolution.mpp, settings)
    facts |= {"tissue_mm2": laid.tissue_mm2, "patches": len(laid.coords)}
    if not laid.tissue_mm2:
        facts["stage"] = "tissue"
        raise InputError("no tissue found", slide=row["slide_id"], remedy="Loosen `slides.tissue`, or leave out the slide.")
    if not len(laid.coords):
        raise InputError("no patch lies on enough tissue", slide=row["slide_id"], remedy="Lower `patches.min_tissue`.")
    facts["stage"] = ""


def describe(probed: pd.DataFrame, listed: int) -> Iterator[Finding]:
    """What the probed slides have in common, and a line for each way in which some of them fail."""
    good = probed[probed["stage"].isna()]
    how = "all" if len(probed) == listed else f"{len(probed)}"
    yield Finding(OK if len(good) else FAIL, "slides", f"{listed} listed, {how} probed, {len(good)} without a problem")
    for stage, what in STAGES.items():
        failed = probed[probed["stage"] == stage]
        if len(failed):
            first = failed.iloc[0]
            text = f"{len(failed)} of {len(probed)} {what}: {some(failed['slide_id'])}. {first['problem']}"
            yield Finding(WARN, "slides", text, "" if pd.isna(first["advice"]) else first["advice"])
    if len(good):
        vendors = ", ".join(f"{count} {name}" for name, count in good["vendor"].fillna("no vendor").value_counts().items())
        yield Finding(OK, "formats", vendors)
        sources = ", ".join(f"{count} from {name}" for name, count in good["mpp_source"].value_counts().items())
        spread = f"{good['mpp'].min():.3g}–{good['mpp'].max():.3g}" if good["mpp"].nunique() > 1 else f"{good['mpp'].iloc[0]:.3g}"
        yield Finding(OK, "resolution", f"{spread} µm per pixel; {sources}")
