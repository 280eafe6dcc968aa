"""The slides of a study: where they are, and how they are read and encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config import ROOT, read_yaml
from pipeline.contents import Contents
from pipeline.errors import InputError, nearest
from pipeline.files import matching
from pipeline.slides.encoders.table import NOTES
from pipeline.slides.provenance import fingerprint
from pipeline.study.inputs import data_path, named_files

OF_MANY_FILES = {".mrxs", ".dcm", ".vms", ".vmu", ".ndpis"}  # suffixes of files that name others


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


def slide_table(study: Mapping[str, Any]) -> list[str]:
    """The cohort's own list of slides, if it gives one."""
    table = study["slides"]["table"]
    return [data_path(study, table)] if table else []


def folder_listing(study: Mapping[str, Any], contents: Contents) -> str:
    """A digest of the names and contents of the slide files, so that new or replaced slides make the list stale."""
    made, slides = made_features(study), study["slides"]
    if study["synthetic"] or slides_absent(study):
        return ""
    folder = Path(made["folder"] if made else slide_folder(study))
    files = set(_files(folder, "**/*" if made else slides["pattern"]))
    for table in slide_table(study):
        files |= named_files(table, ["file"], folder)
    return contents.listing(folder, _with_companions(files), fingerprint)


def mask_listing(study: Mapping[str, Any], contents: Contents) -> str:
    """The same for the files with tissue from outside."""
    folder = masks(study)["folder"]
    return contents.listing(Path(folder), _files(Path(folder), "**/*")) if folder and Path(folder).is_dir() else ""


def _files(folder: Path, pattern: str) -> list[Path]:
    return matching(folder, pattern)


def _with_companions(files: Iterable[Path]) -> set[Path]:
    """`files` and all that may belong to a slide of many files: what lies in its folder, or in the folder of its name."""
    found = set(files)
    for file in files:
        if file.suffix.lower() in OF_MANY_FILES:
            found |= set(_files(file.with_suffix(""), "**/*")) | set(_files(file.parent, "*"))
    return found


def masks(study: Mapping[str, Any]) -> dict[str, Any]:
    """Where tissue from outside is (`pipeline.slides.masks.MaskSettings`), with its folder resolved."""
    settings = dict(study["slides"]["masks"])
    folder = settings.get("folder")
    return {**settings, "folder": data_path(study, folder) if folder else None}


def encoder_running(study: Mapping[str, Any]) -> dict[str, Any]:
    """How the encoder runs (`pipeline.slides.encoders.network.EncoderSettings`)."""
    return {key: study["slides"][key] for key in ("device", "batch_size", "threads", "precision", "compile")}


def encoder_entry(study: Mapping[str, Any], encoder: str) -> dict[str, Any]:
    """What ``config/encoders.yaml`` and the study's `encoders` say of one encoder, but for remarks; only its label where the features
    were made elsewhere."""
    if study["slides"]["features"]:
        return {"label": encoder}
    entry = {**_shipped_encoders().get(encoder, {}), **(study["encoders"].get(encoder) or {})}
    return {key: value for key, value in entry.items() if key == "checkpoint" or key not in NOTES}


def patch_reading(study: Mapping[str, Any]) -> dict[str, Any]:
    """How patches are read (`pipeline.slides.stages.features.ReadingSettings`)."""
    slides = study["slides"]
    kept = {key: slides[key] for key in ("readers", "max_bad_share", "patience")}
    return {"method": slides["reading"], "check": slides["check_levels"], **kept}


@cache
def _shipped_encoders() -> dict[str, Any]:
    """``config/encoders.yaml``, read once a process: every chunk of slides asks for it. Not to be changed."""
    return read_yaml(ROOT / "encoders.yaml")


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
