"""The slide stage, a chunk of slides at a time: tissue, patches, features.

Each function writes one file a slide, atomically, skips those that are already valid, and ends with the chunk's manifest. A slide
that fails becomes a row with a reason and a remedy; the others go on. Files prove themselves: each holds a digest of everything
that it was made from, so that a changed setting, slide, contour or checkpoint makes it (and only it) again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from shapely.geometry import Polygon

from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.slides.contours import read_contours, write_contours
from pipeline.slides.encoders import Encoder, encoder_spec, load_encoder
from pipeline.slides.features import PatchFile, is_valid, read_coords, write_coords, write_features
from pipeline.slides.manifests import read_passed, run_slides
from pipeline.slides.opening import Slide, resolve
from pipeline.slides.overlay import draw_overlay
from pipeline.slides.patches import PatchSettings, lay_patches
from pipeline.slides.provenance import fingerprint, settings_digest
from pipeline.slides.reading import read_patches
from pipeline.slides.tissue import TissueSettings, find_tissue, tissue_mm2

log = logging.getLogger(__name__)

TISSUE_COLUMNS = ["mpp", "mpp_source", "objective_power", "width", "height", "tissue_mm2", "pieces", "holes"]
PATCHES_COLUMNS = ["patches"]
ENCODE_COLUMNS = ["patches", "unreadable", "width"]


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

    run_slides("tissue", slides, process, TISSUE_COLUMNS, manifest)


def _kept(contours: Path, origin: Mapping[str, object]) -> list[Polygon] | None:
    """Contours that are still valid or drawn by hand, else None."""
    if not contours.is_file():
        return None
    polygons, properties = read_contours(contours)
    if "settings" not in properties:
        log.info("%s was drawn by hand and is kept", contours)
        return polygons
    return polygons if all(properties.get(key) == value for key, value in origin.items()) else None


def patches_chunk(
    tissue_manifest: Path | str, slides: pd.DataFrame, folder: Path | str, manifest: Path | str, settings: PatchSettings | None = None
) -> None:
    """Coordinates of the patches of every slide that passed `tissue_manifest` into `folder`, and the manifest.

    The contours are read from the folder of `tissue_manifest`.
    """
    settings, folder = settings or PatchSettings(), Path(folder)
    tissue = read_passed(tissue_manifest, ["mpp", "width", "height"])

    def process(row: dict) -> dict[str, object]:
        slide_id = row["slide_id"]
        mpp, width, height = (float(tissue.at[slide_id, key]) for key in ("mpp", "width", "height"))
        contours, path = Path(tissue_manifest).parent / f"{slide_id}.geojson", folder / f"{slide_id}.h5"
        origin = {"settings": settings_digest(asdict(settings), mpp, sha256(contours)), "slide_fingerprint": fingerprint(row["path"])}
        if is_valid(path, **origin):
            return {"patches": len(read_coords(path).coords)}
        coords, side = lay_patches(read_contours(contours)[0], (int(width), int(height)), mpp, settings, slide_id)
        if not len(coords):
            raise InputError(
                "no patch lies on enough tissue",
                slide=slide_id,
                expected=f"a patch of {settings.patch_size * settings.target_mpp:g} µm with a tissue share of {settings.min_tissue:g}",
                remedy="Lower `patches.min_tissue` or `patches.patch_size`, or leave out the slide.",
            )
        scale = {"patch_size_level0": side, "patch_size": settings.patch_size, "target_mpp": settings.target_mpp, "mpp": mpp}
        write_coords(path, coords, {**scale, "mpp_source": tissue.at[slide_id, "mpp_source"], **origin})
        return {"patches": len(coords)}

    run_slides("patches", slides[slides["slide_id"].isin(tissue.index)], process, PATCHES_COLUMNS, manifest)


def encode_chunk(
    patches_manifest: Path | str,
    slides: pd.DataFrame,
    folder: Path | str,
    manifest: Path | str,
    encoder: str,
    *,
    overrides: Mapping[str, Mapping[str, object]] | None = None,
    device: str | None = None,
    batch_size: int = 64,
    threads: int = 1,
    max_bad_share: float = 0.1,
) -> None:
    """Features of every slide that passed `patches_manifest` into `folder`, and the manifest.

    `overrides` changes entries of config/encoders.yaml. `threads` decode patches, and as many compute on a CPU. Patches that cannot be
    read are left out and counted; a slide fails when their share exceeds `max_bad_share`. The encoder is loaded once, and only when
    a slide needs it; when that fails, `InputError` is raised, not listed: it is no slide's fault.
    """
    folder, spec = Path(folder), encoder_spec(encoder, overrides)
    slides = slides[slides["slide_id"].isin(read_passed(patches_manifest, []).index)]
    recipe = spec.digest() if len(slides) else ""

    def place(slide_id: str) -> tuple[Path, PatchFile, dict[str, str]]:
        patches = read_coords(Path(patches_manifest).parent / f"{slide_id}.h5")
        settings = settings_digest(recipe, patches.attributes["settings"])
        return folder / f"{slide_id}.h5", patches, {"settings": settings, "slide_fingerprint": str(patches.attributes["slide_fingerprint"])}

    def is_done(slide_id: str) -> bool:
        try:
            path, _, origin = place(slide_id)
        except InputError:  # it will be listed with the slide
            return False
        return is_valid(path, **origin)

    model = None if all(map(is_done, slides["slide_id"])) else load_encoder(spec, device, batch_size, threads)

    def process(row: dict) -> dict[str, object]:
        path, patches, origin = place(row["slide_id"])
        if is_valid(path, **origin):
            done = read_coords(path)
            _check_share(row["slide_id"], int(done.attributes["unreadable"]), len(patches.coords), max_bad_share)
            return {"patches": len(done.coords), "unreadable": done.attributes["unreadable"], "width": spec.width}
        start = time.perf_counter()
        features, readable = _encode(row["path"], patches, model, batch_size, threads)
        unreadable = len(readable) - len(features)
        _check_share(row["slide_id"], unreadable, len(readable), max_bad_share)
        write_features(
            path, features, patches.coords[readable], {**patches.attributes, "encoder": encoder, "unreadable": unreadable, **origin}
        )
        rate = round(len(readable) / (time.perf_counter() - start))
        return {"patches": len(features), "unreadable": unreadable, "width": spec.width, "patches/s": rate}

    run_slides(f"encode ({encoder})", slides, process, ENCODE_COLUMNS, manifest)


def _encode(path: str, patches: PatchFile, model: Encoder, batch_size: int, readers: int) -> tuple[np.ndarray, np.ndarray]:
    """Features float16 [n, d] of the n readable patches, and which of the N patches those are, bool [N]."""
    side, size = (int(patches.attributes[key]) for key in ("patch_size_level0", "patch_size"))
    features, readable = [np.zeros((0, model.width), np.float16)], []
    for batch in read_patches(path, patches.coords, side, size, batch_size, readers):
        readable.append(batch.readable)
        if batch.readable.any():
            with np.errstate(over="ignore"):  # an overflow becomes inf, which write_features refuses
                features.append(model.encode(batch.pixels[batch.readable]).astype(np.float16))
    return np.concatenate(features), np.concatenate(readable)


def _check_share(slide_id: str, unreadable: int, patches: int, max_bad_share: float) -> None:
    if unreadable > max_bad_share * patches:
        raise InputError(
            "too many patches cannot be read",
            slide=slide_id,
            found=f"{unreadable} of {patches}",
            expected=f"at most {max_bad_share:.0%}",
            remedy="Copy the slide again from its source, or raise `slides.max_bad_share`.",
        )
