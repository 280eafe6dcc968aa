"""The slides of a study: where they are, and how they are read and encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config import ROOT, read_yaml
from pipeline.errors import InputError, nearest
from pipeline.study.inputs import data_path


def slides_absent(study: Mapping[str, Any]) -> str | None:
    """Why the cohort has no slides (or features of slides); None when it has."""
    named = (study["slides"]["features"] or study["slides"])["folder"]
    if named is None:
        return "its file names no slides.folder"
    folder = Path(data_path(study, named))
    if not folder.is_dir():
        return f"no folder {folder}"
    return None


def slide_folder(study: Mapping[str, Any]) -> str:
    """The folder to which the files of the slide table, or the pattern, are relative."""
    return data_path(study, study["slides"]["folder"] or ".")


def made_features(study: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where features made elsewhere are (folder resolved, format, encoder), for a cohort that starts from them; else None."""
    made = study["slides"]["features"]
    return made and {**made, "folder": data_path(study, made["folder"]), "encoder": study["slides"]["encoder"]}


def folder_listing(study: Mapping[str, Any]) -> str:
    """A digest of the names, sizes and times of the slide files, so that new or replaced slides make the list stale."""
    made, slides = made_features(study), study["slides"]
    folder, pattern = (made["folder"], "**/*") if made else (data_path(study, slides["folder"] or "."), slides["pattern"])
    if study["synthetic"] or slides_absent(study):
        return ""
    return _listing(Path(folder), pattern)


def mask_listing(study: Mapping[str, Any]) -> str:
    """The same for the files with tissue from outside."""
    folder = masks(study)["folder"]
    return _listing(Path(folder), "**/*") if folder and Path(folder).is_dir() else ""


def _listing(folder: Path, pattern: str) -> str:
    files = [(p.relative_to(folder), p.stat()) for p in folder.glob(pattern) if p.is_file()]
    names = sorted(f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}" for name, stat in files)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def masks(study: Mapping[str, Any]) -> dict[str, Any]:
    """Where tissue from outside is (`pipeline.slides.masks.MaskSettings`), with its folder resolved."""
    settings = dict(study["slides"]["masks"])
    folder = settings.get("folder")
    return {**settings, "folder": data_path(study, folder) if folder else None}


def encoder_running(study: Mapping[str, Any]) -> dict[str, Any]:
    """How the encoder runs (`pipeline.slides.encoders.network.EncoderSettings`)."""
    return {key: study["slides"][key] for key in ("device", "batch_size", "threads", "precision", "compile")}


def weights_state(study: Mapping[str, Any], encoder: str) -> list[int]:
    """Size and time of the encoder's checkpoint, where the study names one that is there: replaced weights make features stale."""
    checkpoint = (study["encoders"].get(encoder) or {}).get("checkpoint")
    if not checkpoint or not Path(checkpoint).is_file():
        return []
    state = Path(checkpoint).stat()
    return [state.st_size, state.st_mtime_ns]


def patch_reading(study: Mapping[str, Any]) -> dict[str, Any]:
    """How patches are read (`pipeline.slides.stages.features.ReadingSettings`)."""
    slides = study["slides"]
    kept = {key: slides[key] for key in ("readers", "max_bad_share", "patience")}
    return {"method": slides["reading"], "check": slides["check_levels"], **kept}


@cache
def _shipped_encoders() -> tuple[str, ...]:
    """The names in ``config/encoders.yaml``, read once a process: every chunk of slides asks for them."""
    return tuple(read_yaml(ROOT / "encoders.yaml"))


def check_encoder(study: Mapping[str, Any], encoder: str) -> str:
    """`encoder` itself; raises `InputError` for one that neither ``config/encoders.yaml`` nor `encoders` knows.

    Where the features were made elsewhere it is a label, and anything goes.
    """
    if study["slides"]["features"]:
        return encoder
    known = [*_shipped_encoders(), *study["encoders"]]
    if encoder not in known:
        expected = "one of " + ", ".join(known)
        raise InputError("unknown encoder", file=study["file"], found=encoder, expected=expected, remedy=nearest(encoder, known))
    return encoder
