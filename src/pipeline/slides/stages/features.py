"""The features stage of a chunk of slides: every patch through an encoder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.slides.encoders.network import Encoder, load_encoder
from pipeline.slides.encoders.table import encoder_spec
from pipeline.slides.features import PatchFile, is_valid, read_coords, write_features
from pipeline.slides.provenance import settings_digest
from pipeline.slides.reading import read_patches
from pipeline.slides.stages.manifests import read_passed, run_slides

COLUMNS = ["patches", "unreadable", "width"]


def features_chunk(
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

    run_slides(f"encode ({encoder})", slides, process, COLUMNS, manifest)


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
