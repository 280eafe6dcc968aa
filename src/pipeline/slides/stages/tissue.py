"""The tissue stage of a chunk of slides: contours and overlays."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from shapely.geometry import Polygon

from pipeline.errors import InputError
from pipeline.slides.contours import read_contours, write_contours
from pipeline.slides.opening import Slide
from pipeline.slides.overlay import draw_overlay
from pipeline.slides.provenance import fingerprint, settings_digest
from pipeline.slides.resolution import resolve
from pipeline.slides.stages.manifests import run_slides
from pipeline.slides.tissue import TissueSettings, find_tissue, tissue_mm2

log = logging.getLogger(__name__)

COLUMNS = ["mpp", "mpp_source", "objective_power", "width", "height", "tissue_mm2", "pieces", "holes"]


def tissue_chunk(
    slides: pd.DataFrame,
    folder: Path | str,
    manifest: Path | str,
    settings: TissueSettings | None = None,
    default_mpp: float | None = None,
) -> None:
    """Contours (GeoJSON) and overlay (PNG) of every row of `slides` (slide_id, path, mpp) into `folder`, and the manifest.

    `default_mpp` serves slides whose resolution neither `slides` nor the file tells. A GeoJSON file without our properties was
    drawn by hand (exported from QuPath, say): it is used and never overwritten.
    """
    settings, folder = settings or TissueSettings(), Path(folder)

    def process(row: dict) -> dict[str, object]:
        with Slide(row["path"]) as slide:
            resolution = resolve(slide.properties, row["slide_id"], row.get("mpp"), default_mpp)
            contours = folder / f"{row['slide_id']}.geojson"
            origin = {"settings": settings_digest(asdict(settings), resolution.mpp), "slide_fingerprint": fingerprint(row["path"])}
            polygons = _kept(contours, origin)
            if polygons is None:
                polygons = find_tissue(slide, resolution.mpp, settings)
                write_contours(contours, polygons, {**origin, **asdict(resolution)})
            picture = contours.with_suffix(".png")
            if not picture.is_file() or picture.stat().st_mtime < contours.stat().st_mtime:
                draw_overlay(slide, polygons, picture)
        if not polygons:
            raise InputError(
                "no tissue found",
                slide=row["slide_id"],
                expected=f"a stained piece of at least {settings.min_piece_mm2:g} mm²",
                remedy=f"Look at {picture.name}; loosen `tissue.saturation` or `tissue.min_piece_mm2`, or draw the tissue in QuPath.",
            )
        return {
            **{"mpp": resolution.mpp, "mpp_source": resolution.source, "objective_power": resolution.objective_power},
            **{"width": slide.dimensions[0], "height": slide.dimensions[1], "tissue_mm2": tissue_mm2(polygons, resolution.mpp)},
            **{"pieces": len(polygons), "holes": sum(len(p.interiors) for p in polygons)},
        }

    run_slides("tissue", slides, process, COLUMNS, manifest)


def _kept(contours: Path, origin: Mapping[str, object]) -> list[Polygon] | None:
    """Contours that are still valid or drawn by hand, else None."""
    if not contours.is_file():
        return None
    polygons, properties = read_contours(contours)
    if "settings" not in properties:
        log.info("%s was drawn by hand and is kept", contours)
        return polygons
    return polygons if all(properties.get(key) == value for key, value in origin.items()) else None
