"""The patches stage of a chunk of slides: coordinates and previews."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.slides.contours import read_contours, shape_digest
from pipeline.slides.features import read_made, write_coords
from pipeline.slides.masks import MaskSettings
from pipeline.slides.opening import Slide
from pipeline.slides.overview import overview
from pipeline.slides.patches import PatchSettings, lay_patches
from pipeline.slides.preview import draw_preview
from pipeline.slides.provenance import code_of, made_by, settings_digest, slide_fingerprint
from pipeline.slides.stages.manifests import PATIENCE, read_passed, run_slides

COLUMNS = ["patches"]
PREVIEW, A_PATCH = 1600, 16  # pixels of a preview's longer side, and of a patch in it, at most


def patches_chunk(
    tissue_manifest: Path | str,
    slides: pd.DataFrame,
    folder: Path | str,
    manifest: Path | str,
    settings: PatchSettings | None = None,
    *,
    ignore: Sequence[str] = MaskSettings.ignore,
    patience: float = PATIENCE,
) -> None:
    """Coordinates of the patches of every slide that passed `tissue_manifest` and a preview of them into `folder`, and the manifest.

    The contours are read from the folder of `tissue_manifest`; of those drawn by hand, annotations of the classes `ignore` are cut out.
    """
    settings, folder = settings or PatchSettings(), Path(folder)
    tissue = read_passed(tissue_manifest, ["mpp", "width", "height"])

    def process(row: dict) -> dict[str, object]:
        slide_id = row["slide_id"]
        mpp, width, height = (float(tissue.at[slide_id, key]) for key in ("mpp", "width", "height"))
        contours, path = Path(tissue_manifest).parent / f"{slide_id}.geojson", folder / f"{slide_id}.h5"
        with made_by("tissue"):
            polygons, _ = read_contours(contours, ignore, slide_id)
        parts = asdict(settings), mpp, shape_digest(polygons)
        code = code_of("pipeline.slides.patches", "pipeline.slides.preview")
        origin = {"settings": settings_digest(*parts), "slide_fingerprint": slide_fingerprint(row["path"]), "code": code}
        picture = path.with_suffix(".png")
        made = read_made(path, **origin)
        if made and picture.is_file():
            return {"patches": len(made.coords)}
        coords, side = lay_patches(polygons, (int(width), int(height)), mpp, settings, slide_id)
        if not len(coords):
            raise InputError(
                "no patch lies on enough tissue",
                slide=slide_id,
                expected=f"a patch of {settings.patch_size * settings.target_mpp:g} µm with a tissue share of {settings.min_tissue:g}",
                remedy="Lower `patches.min_tissue` or `patches.patch_size`, or leave out the slide.",
            )
        with Slide(row["path"]) as slide:
            downsample = max(side / A_PATCH, max(slide.dimensions) / PREVIEW)
            draw_preview(picture, overview(slide, downsample, max_unreadable=1.0), downsample, coords, side)
        pixels = {"patch_size_level0": side, "patch_size": settings.patch_size, "step": settings.step or settings.patch_size}
        scale = {"target_mpp": settings.target_mpp, "mpp": mpp}
        write_coords(path, coords, {**pixels, **scale, "mpp_source": tissue.at[slide_id, "mpp_source"], **origin})
        return {"patches": len(coords)}

    run_slides("patches", slides[slides["slide_id"].isin(tissue.index)], process, COLUMNS, manifest, patience)
