"""A study from its files: `config.yaml` overlaid by one cohort's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import ROOT, SHARED, fill_defaults, merge, read_yaml, schema, validate
from pipeline.errors import InputError, nearest
from pipeline.study.models import model_file
from pipeline.study.slides import check_encoder


def cohort_names() -> list[str]:
    """Every cohort that has a file under ``config/cohorts/``; neither the template nor what cohorts extend (``_*.yaml``) is one."""
    return sorted(p.stem for p in (ROOT / "cohorts").glob("*.yaml") if p.stem != "template" and not p.stem.startswith("_"))


def load_study(
    config: Mapping[str, Any], cohort: str, command_line: Mapping[str, Any] | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """The settings of one cohort's study: `config` (validated ``config.yaml``) overlaid by ``config/cohorts/<cohort>.yaml``.

    Blocks named in `SHARED` are merged key by key, so a cohort states only what differs; what `command_line` states of them
    beats both, and `models` of the configuration replaces those of the cohort. Paths stay as written: see `data_path`.
    folder: where the cohort's file is, and those that it extends, if not in ``config/cohorts``.
    Raises `InputError` for an unknown cohort (with the nearest name), an invalid file, and what its schema cannot tell: names of
    modalities that clash, options of a model that does not exist.
    """
    file = (folder or ROOT / "cohorts") / f"{cohort}.yaml"
    if not file.is_file():
        known = cohort_names()
        raise InputError(f"unknown cohort {cohort!r}", file=file, expected="one of " + ", ".join(known), remedy=nearest(cohort, known))
    written = validate(_named(_extended(file), cohort), "cohort", file, fill=False)  # defaults come with `config`, which it overlays
    stated = {block: value for block, value in (command_line or {}).items() if block in SHARED}
    study = fill_defaults(merge(merge({block: config[block] for block in SHARED}, written), stated), schema("cohort"))
    study["data_dir"] = study.get("data_dir") or config["data_dir"]
    study["models"] = config.get("models") or study["models"]
    study |= {"name": cohort, "file": str(file), "seed": config["seed"], "encoders": config["encoders"]}
    check_encoder(study, study["slides"]["encoder"])
    _check_names(study)
    return study


def _check_names(study: Mapping[str, Any]) -> None:
    """Raise `InputError` for a table or bag whose name another modality has, and for `options` of an unknown model or variant."""
    taken = {"wsi": "the slides", "omics": "the molecular tables"}
    for block in ("bags", "tables"):
        for name in study[block]:
            if name in taken:
                remedy = "Give it another name; models, tables and columns has_<name> go by it."
                raise InputError(
                    f"{block}.{name} has a name that is taken", file=study["file"], found=f"{name}: {taken[name]}", remedy=remedy
                )
            taken[name] = f"one of {block}"
    for model in study["options"]:
        known = model_file(study, model, "options")[0]["model"]
        for option in study["options"][model]:
            if option not in known:
                problem, expected = f"unknown option of {model}", "one of " + ", ".join(known)
                raise InputError(problem, file=study["file"], found=option, expected=expected, remedy=nearest(option, known))


def _extended(file: Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The cohort's file over those that it `extends`; `above` are the files that extend it."""
    document = read_yaml(file)
    base = document.pop("extends", None)
    if base is None:
        return document
    other = file.parent / f"{base}.yaml"
    chain = (*above, file.stem)
    if base in chain or other.parent != file.parent or not other.is_file():
        known = [name for name in cohort_names() if name not in chain]
        raise InputError(
            "extends no other cohort", file=file, found=base, expected="one of " + ", ".join(known), remedy=nearest(base, known)
        )
    return merge(_extended(other, chain), document)


def _named(value: Any, cohort: str) -> Any:
    """`value` with the cohort's name in place of ``{cohort}``."""
    if isinstance(value, Mapping):
        return {key: _named(part, cohort) for key, part in value.items()}
    if isinstance(value, list):
        return [_named(part, cohort) for part in value]
    return value.replace("{cohort}", cohort) if isinstance(value, str) else value
