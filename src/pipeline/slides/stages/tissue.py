"""The tissue stage of a chunk of slides: contours, figures of quality, overlays."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from shapely.geometry import Polygon

from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.machine import read_to_end
from pipeline.slides.contours import read_contours, write_contours
from pipeline.slides.filesets import slide_files
from pipeline.slides.masks import MaskSettings, mask_file, outside_tissue, within
from pipeline.slides.md5sums import Md5Sums, check_md5
from pipeline.slides.opening import Slide
from pipeline.slides.overlay import draw_overlay
from pipeline.slides.provenance import SpoiltError, code_of, settings_digest, slide_fingerprint
from pipeline.slides.quality import FIGURES, QualitySettings, measure
from pipeline.slides.resolution import resolve
from pipeline.slides.stages.manifests import PATIENCE, TISSUE, run_slides
from pipeline.slides.tiles import check_directory
from pipeline.slides.tissue import TissueSettings, find_tissue

log = logging.getLogger(__name__)


def tissue_chunk(
    slides: pd.DataFrame,
    folder: Path | str,
    manifest: Path | str,
    settings: TissueSettings | None = None,
    *,
    quality: QualitySettings | None = None,
    masks: MaskSettings | None = None,
    md5sums: Md5Sums | None = None,
    default_mpp: float | None = None,
    check: bool = True,
    patience: float = PATIENCE,
) -> None:
    """Contours (GeoJSON) and overlay (PNG) of every row of `slides` (slide_id, path, mpp) into `folder`, and the manifest.

    Tissue from outside (`masks`) goes before ours; before both goes a GeoJSON file in `folder` without our properties: it was drawn by hand
    (exported from QuPath, say), is used and never overwritten. A file of ours that is damaged or was edited is made again. A slide that
    differs from the MD5 of its row, or one of whose files differs from `md5sums`, fails. `default_mpp` serves slides whose resolution
    neither `slides` nor the file tells. With `check`, a TIFF with a damaged directory is refused, whatever of it can be opened.
    """
    settings, quality, masks = settings or TissueSettings(), quality or QualitySettings(), masks or MaskSettings()

    def process(row: dict) -> dict[str, object]:
        slide_id, contours = row["slide_id"], Path(folder) / f"{row['slide_id']}.geojson"
        drawn, known = _existing(contours, masks.ignore, slide_id)
        outside = None if drawn is not None else mask_file(slide_id, masks)
        sums = md5sums and md5sums.of(row["path"])
        with _open(row, sums) as slide:
            resolution = resolve(slide.properties, slide_id, row.get("mpp"), default_mpp)
            mask = outside and [sha256(outside), masks.values, masks.ignore]
            parts = (FIGURES, asdict(settings), asdict(quality), resolution.mpp, mask, row.get("md5"), sums and list(sums.values()))
            code = code_of("pipeline.slides.tissue", "pipeline.slides.quality", "pipeline.slides.masks", "pipeline.slides.overlay")
            origin = {"settings": settings_digest(*parts), "slide_fingerprint": slide_fingerprint(row["path"]), "code": code}
            picture = contours.with_suffix(".png")
            if all(known.get(key) == value for key, value in origin.items()) and picture.is_file():
                return _checked(slide_id, known, settings, picture)
            check_md5(row, sums)
            if check:
                check_directory(slide)
            given = None if drawn is None else within(drawn, slide.dimensions, contours, slide_id)
            if outside:
                given = outside_tissue(masks.folder, slide_id, slide.dimensions, masks)
            tissue = find_tissue(slide, resolution.mpp, settings, given)
            source = "drawn" if drawn is not None else outside.name if outside else "found"
            found = {
                **{"mpp": resolution.mpp, "mpp_source": resolution.source, "objective_power": resolution.objective_power},
                **{"width": slide.dimensions[0], "height": slide.dimensions[1], "tissue_source": source},
                **measure(slide, tissue, resolution.mpp, quality),
            }
        if "unreadable" in str(found["flags"]).split(";"):
            read_to_end(slide_files(row["path"]))  # lest a disk that does not read passes for damage
        if drawn is None:
            write_contours(contours, tissue.polygons, {**origin, **found})
        draw_overlay(tissue.image, tissue.downsample, tissue.polygons, picture)
        return _checked(slide_id, found, settings, picture)

    run_slides("tissue", slides, process, TISSUE, manifest, patience)


def _open(row: dict, sums: Mapping[Path, str | None] | None) -> Slide:
    """The slide; where it cannot be opened and its checksum tells that it is damaged, that is the reason."""
    try:
        return Slide(row["path"])
    except InputError:
        if Path(row["path"]).is_file():
            check_md5(row, sums)
        raise


def _existing(contours: Path, ignore: Sequence[str], slide_id: str) -> tuple[list[Polygon] | None, Mapping[str, object]]:
    """Contours that were drawn by hand (else None), and the properties of ours; neither where ours are to be made again."""
    if not contours.is_file():
        return None, {}
    try:
        polygons, properties = read_contours(contours, ignore, slide_id)
    except SpoiltError as error:
        log.warning("%s It is made again.", error.reason)
        return None, {}
    if properties:
        return None, properties
    log.info("%s was drawn by hand and is kept", contours)
    return polygons, {}


def _checked(slide_id: str, found: Mapping[str, object], settings: TissueSettings, picture: Path) -> dict[str, object]:
    """The slide's row of the manifest; raises `InputError` when it has no tissue."""
    if not found["pieces"]:
        raise InputError(
            "no tissue found",
            slide=slide_id,
            expected=f"a stained piece of at least {settings.min_piece_mm2:g} mm²",
            remedy=f"Look at {picture.name}; loosen `tissue.saturation` or `tissue.min_piece_mm2`, or draw the tissue in QuPath.",
        )
    return {key: found[key] for key in TISSUE}
