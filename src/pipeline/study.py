"""A study: `config.yaml` overlaid by one cohort's file; what it offers, and which models can therefore run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import ROOT, SHARED, fill_defaults, merge, read_yaml, schema, validate
from pipeline.errors import InputError, nearest


def cohort_names() -> list[str]:
    """Every cohort that has a file under ``config/cohorts/``; neither the template nor what cohorts extend (``_*.yaml``) is one."""
    return sorted(p.stem for p in (ROOT / "cohorts").glob("*.yaml") if p.stem != "template" and not p.stem.startswith("_"))


def load_study(config: Mapping[str, Any], cohort: str, command_line: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of one cohort's study: `config` (validated ``config.yaml``) overlaid by ``config/cohorts/<cohort>.yaml``.

    Blocks named in `SHARED` are merged key by key, so a cohort states only what differs; what `command_line` states of them
    beats both. Paths stay as written: see `data_path`. Raises `InputError` for an unknown cohort (with the nearest name) or an
    invalid file.
    """
    file = ROOT / "cohorts" / f"{cohort}.yaml"
    if not file.is_file():
        known = cohort_names()
        raise InputError(f"unknown cohort {cohort!r}", file=file, expected="one of " + ", ".join(known), remedy=nearest(cohort, known))
    written = validate(_named(_extended(file), cohort), "cohort", file, fill=False)  # defaults come with `config`, which it overlays
    stated = {block: value for block, value in (command_line or {}).items() if block in SHARED}
    study = fill_defaults(merge(merge({block: config[block] for block in SHARED}, written), stated), schema("cohort"))
    study["data_dir"] = study.get("data_dir") or config["data_dir"]
    study |= {"name": cohort, "file": str(file), "seed": config["seed"], "encoders": config["encoders"]}
    check_encoder(study, study["slides"]["encoder"])
    return study


def _extended(file: Path) -> dict[str, Any]:
    """The cohort's file over those that it `extends`."""
    document = read_yaml(file)
    base = document.pop("extends", None)
    if base is None:
        return document
    other = file.with_name(f"{base}.yaml")
    if base == file.stem or not other.is_file():
        known = [name for name in cohort_names() if name != file.stem]
        raise InputError(
            "extends no other cohort", file=file, found=base, expected="one of " + ", ".join(known), remedy=nearest(base, known)
        )
    return merge(_extended(other), document)


def _named(value: Any, cohort: str) -> Any:
    """`value` with the cohort's name in place of ``{cohort}``."""
    if isinstance(value, Mapping):
        return {key: _named(part, cohort) for key, part in value.items()}
    if isinstance(value, list):
        return [_named(part, cohort) for part in value]
    return value.replace("{cohort}", cohort) if isinstance(value, str) else value


def data_path(study: Mapping[str, Any], path: str) -> str:
    """A path of the cohort's file: absolute as it is, else relative to the study's `data_dir`."""
    return path if Path(path).is_absolute() else str(Path(study["data_dir"]) / path)


def modalities(study: Mapping[str, Any]) -> list[str]:
    """What the cohort offers: `wsi` where its slides are on disk (or made by the workflow), `omics`, each bag, each further table."""
    found = ["wsi"] if study["synthetic"] or slides_absent(study) is None else []
    found += ["omics"] if study["omics"]["tables"] else []
    return [*found, *sorted(study["bags"]), *sorted(study["tables"])]


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


def _listing(folder: Path, pattern: str) -> str:
    files = [(p.relative_to(folder), p.stat()) for p in folder.glob(pattern) if p.is_file()]
    names = sorted(f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}" for name, stat in files)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def mask_listing(study: Mapping[str, Any]) -> str:
    """The same for the files with tissue from outside."""
    folder = masks(study)["folder"]
    return _listing(Path(folder), "**/*") if folder and Path(folder).is_dir() else ""


def masks(study: Mapping[str, Any]) -> dict[str, Any]:
    """Where tissue from outside is (`pipeline.slides.masks.MaskSettings`), with its folder resolved."""
    settings = dict(study["slides"]["masks"])
    folder = settings.get("folder")
    return {**settings, "folder": data_path(study, folder) if folder else None}


def encoder_running(study: Mapping[str, Any]) -> dict[str, Any]:
    """How the encoder runs (`pipeline.slides.encoders.network.EncoderSettings`)."""
    return {key: study["slides"][key] for key in ("device", "batch_size", "threads", "precision", "compile")}


def patch_reading(study: Mapping[str, Any]) -> dict[str, Any]:
    """How patches are read (`pipeline.slides.stages.features.ReadingSettings`)."""
    slides = study["slides"]
    kept = {key: slides[key] for key in ("readers", "max_bad_share", "patience")}
    return {"method": slides["reading"], "check": slides["check_levels"], **kept}


def groupings(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The gene groupings with resolved paths; one marked `optional` is left out where its file is absent.

    Raises `InputError` for another that is absent.
    """
    found = {}
    for name, grouping in study["omics"]["groups"].items():
        file = data_path(study, grouping["file"])
        if study["synthetic"] or Path(file).is_file():
            found[name] = {**grouping, "file": file}
        elif not grouping["optional"]:
            remedy = f"Check omics.groups.{name}.file and data_dir, or mark the grouping optional."
            raise InputError("no such gene-set file", file=file, expected="a GMT, TSV or CSV file", remedy=remedy)
    return found


def check_encoder(study: Mapping[str, Any], encoder: str) -> str:
    """`encoder` itself; raises `InputError` for one that neither ``config/encoders.yaml`` nor `encoders` knows.

    Where the features were made elsewhere it is a label, and anything goes.
    """
    if study["slides"]["features"]:
        return encoder
    known = [*read_yaml(ROOT / "encoders.yaml"), *study["encoders"]]
    if encoder not in known:
        expected = "one of " + ", ".join(known)
        raise InputError("unknown encoder", file=study["file"], found=encoder, expected=expected, remedy=nearest(encoder, known))
    return encoder


def tables(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How to read the further tables (`pipeline.cohort.vectors.read_vectors`), by modality, with their paths resolved."""
    reading = ("patient_id", "columns", "categorical")
    return {
        name: {"file": data_path(study, table["file"]), **{key: table[key] for key in reading if key in table}}
        for name, table in study["tables"].items()
    }


def bag_sources(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The bags that are not slides, by modality, with their paths resolved."""
    return {
        name: {**bag, **{key: data_path(study, bag[key]) for key in ("file", "manifest") if bag.get(key)}}
        for name, bag in study["bags"].items()
    }


def omics_tables(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The molecular tables, with their paths resolved."""
    return [{**table, "file": data_path(study, table["file"])} for table in study["omics"]["tables"]]


def model_needs(study: Mapping[str, Any], model: str) -> list[str]:
    """The modalities without which `model` (`<name>` or `<name>+<variant>`) does not run in this study.

    They stand under `needs` in ``config/models/<name>.yaml``, where `tables` means every table of the cohort; a variant may state
    its own. A study that points a model at some of its tables (`options.<name>.modality` or `modalities`) needs those.
    Raises `InputError` for an unknown model or variant.
    """
    name, _, variant = model.partition("+")
    file = ROOT / "models" / f"{name}.yaml"
    known = sorted(p.stem for p in (ROOT / "models").glob("*.yaml"))
    if name not in known:
        raise InputError(
            f"unknown model {name!r} under models", file=study["file"], expected="one of " + ", ".join(known), remedy=nearest(name, known)
        )
    settings = read_yaml(file)
    variants = settings.get("variants") or {}
    if variant and variant not in variants:
        expected = "one of " + ", ".join(variants)
        raise InputError(
            f"unknown variant {model!r} under models", file=study["file"], expected=expected, remedy=nearest(variant, variants)
        )
    options = model_options(study, model)
    chosen = options.get("modalities") or ([options["modality"]] if options.get("modality") else None)
    needs = chosen or (variants.get(variant) or {}).get("needs") or settings["needs"]
    return list(dict.fromkeys(m for need in needs for m in (sorted(study["tables"]) or [need] if need == "tables" else [need])))


def model_options(study: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Constructor arguments that the study states: under `options.<name>`, and over them under `options.<name>+<variant>`.

    What `options.<name>` says of modalities does not hold for a variant that states its own needs.
    """
    name, _, variant = model.partition("+")
    options = dict(study["options"].get(name, {}))
    variants = read_yaml(ROOT / "models" / f"{name}.yaml").get("variants") or {}
    if (variants.get(variant) or {}).get("needs"):
        options = {key: value for key, value in options.items() if key not in ("modality", "modalities")}
    return options | (study["options"].get(model, {}) if variant else {})


def kind(study: Mapping[str, Any]) -> str:
    """`survival` or `binary`: what the study's endpoint is."""
    return study["endpoints"].get(study["endpoint"], {}).get("kind", "survival")


def reference(study: Mapping[str, Any]) -> str | None:
    """The model with which all others are compared: by default a regression on the table `clinical` (age, sex, stage, grade …)."""
    if study["reference"] != "auto":
        return study["reference"]
    return {"survival": "coxnet+clinical", "binary": "logistic+clinical"}[kind(study)]


def all_models(study: Mapping[str, Any]) -> list[str]:
    """The models of the study and its reference."""
    return list(dict.fromkeys([*study["models"], *filter(None, [reference(study)])]))


def not_run(study: Mapping[str, Any]) -> dict[str, str]:
    """Models of the study that cannot run, with the reason; a slide model without slides says where they were looked for."""
    offered, reasons = modalities(study), {}
    for model in all_models(study):
        lacking = [m for m in model_needs(study, model) if m not in offered]
        if lacking:
            why = f" ({slides_absent(study)})" if "wsi" in lacking else ""
            words = " and ".join("slides" if m == "wsi" else m for m in lacking)
            reasons[model] = f"needs {words}, which cohort {study['name']} lacks{why}"
    return reasons


def models_to_run(study: Mapping[str, Any]) -> list[str]:
    """The models that can run; raises `InputError` when the study has no endpoint or none of its models can."""
    if not study["endpoints"]:
        remedy = f"Ask for results/{study['name']}/slides/manifest-{study['slides']['encoder']}.tsv, or add endpoints."
        raise InputError("the cohort has no follow-up, so nothing can be trained", file=study["file"], remedy=remedy)
    absent = not_run(study)
    models = [m for m in all_models(study) if m not in absent]
    if not models:
        raise InputError("none of its models can run: " + "; ".join(f"{m} {r}" for m, r in absent.items()), file=study["file"])
    return models


def endpoint(study: Mapping[str, Any]) -> dict[str, Any]:
    """How to read the study's follow-up (`file` resolved); raises `InputError` when it is not one of `endpoints`."""
    name, known = study["endpoint"], study["endpoints"]
    if name not in known:
        raise InputError(
            f"unknown endpoint {name!r}", file=study["file"], expected="one of " + ", ".join(known), remedy=nearest(name, known)
        )
    settings = dict(known[name])
    return {"file": data_path(study, settings.pop("table")), **settings}


def aliases(study: Mapping[str, Any]) -> list[str]:
    """Tables of outdated gene symbols: our own and, where it names one, the cohort's."""
    own = study["omics"]["aliases"]
    return [str(ROOT / "gene_aliases.tsv"), *([data_path(study, own)] if own else [])]


def included(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conditions that restrict the cohort, with the paths of their tables resolved."""
    return [{**condition, "table": data_path(study, condition["table"])} for condition in study["include"]]


SPLIT_OPTIONS = {
    "kfold": ("folds", "repeats"),
    "site": ("folds", "repeats", "site"),
    "monte_carlo": ("folds", "test_share"),
    "imported": ("folds", "first", "column", "train", "test", "allow_untested"),
}


def has_data(study: Mapping[str, Any]) -> bool:
    """Whether the follow-up of the study is on disk."""
    return Path(endpoint(study)["file"]).is_file()


def splits(study: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `pipeline.cohort.splits.build_splits`, with the path of imported lists resolved."""
    scheme = study["splits"]
    method = scheme["scheme"]
    chosen = {"method": method, **{key: scheme[key] for key in SPLIT_OPTIONS[method]}}
    if method != "imported":
        return chosen
    if not scheme.get("file"):
        raise InputError(
            "splits.scheme is 'imported' but splits.file is missing", file=study["file"], expected="a path, perhaps with {fold}"
        )
    return {**chosen, "pattern": data_path(study, scheme["file"])}


def fold_count(study: Mapping[str, Any]) -> int:
    """Number of folds, all repeats together."""
    scheme = splits(study)
    return scheme["folds"] * scheme.get("repeats", 1)


def split_files(study: Mapping[str, Any]) -> list[str]:
    """The imported lists of the study: a file a fold, or one for all."""
    scheme = splits(study)
    if scheme["method"] != "imported":
        return []
    return sorted({scheme["pattern"].format(fold=scheme["first"] + k) for k in range(scheme["folds"])})


def fold_settings(study: Mapping[str, Any], model: str, shuffled: int | None = None) -> dict[str, Any]:
    """Everything that training one fold of `model` depends on, and nothing else; `shuffled`: the repetition on permuted labels."""
    keys = ("name", "seed", "bins", "bag_scaling", "training")
    return {
        **{key: study[key] for key in keys},
        "endpoint": study["endpoint"],
        "kind": kind(study),
        "model": model,
        "modalities": model_needs(study, model),
        "options": model_options(study, model),
        "omics": {key: study["omics"][key] for key in ("scaling", "impute", "clip", "select")},
        "tables": tables(study),
        "table_scaling": {name: {key: table[key] for key in ("scaling", "impute")} for name, table in study["tables"].items()},
        **({} if shuffled is None else {"shuffled": shuffled}),
    }


def report_settings(study: Mapping[str, Any]) -> dict[str, Any]:
    """What the report states under provenance: settings that the figures depend on, without the machine's paths."""
    settings = {key: study[key] for key in ("seed", "endpoint", "bins", "training", "options", "evaluation", "controls")}
    settings["splits"] = {key: value for key, value in splits(study).items() if key != "pattern"}
    settings["omics"] = {key: study["omics"][key] for key in ("scaling", "impute", "clip", "select")}
    if "wsi" in modalities(study):
        settings["slides"] = {key: study["slides"][key] for key in ("encoder", "patches")}
    return settings
