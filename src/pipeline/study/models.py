"""The models of a study: which can run on what the cohort offers, and all that training one depends on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pipeline.config import ROOT, read_yaml
from pipeline.errors import InputError, nearest
from pipeline.models.registry import load_model_config
from pipeline.study.inputs import kind, splits, tables
from pipeline.study.slides import slides_absent


def modalities(study: Mapping[str, Any]) -> list[str]:
    """What the cohort offers: `wsi` where its slides are on disk (or made by the workflow), `omics`, each bag, each further table."""
    found = ["wsi"] if study["synthetic"] or slides_absent(study) is None else []
    found += ["omics"] if study["omics"]["tables"] else []
    return [*found, *sorted(study["bags"]), *sorted(study["tables"])]


def model_file(study: Mapping[str, Any], model: str, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``config/models/<name>.yaml`` says, and what it says of the variant (nothing without one); `key` names `model` in the study."""
    name, _, variant = model.partition("+")
    if not (ROOT / "models" / f"{name}.yaml").is_file():
        known = sorted(p.stem for p in (ROOT / "models").glob("*.yaml"))
        raise InputError(
            f"unknown model {name!r} under {key}", file=study["file"], expected="one of " + ", ".join(known), remedy=nearest(name, known)
        )
    settings = _written(name)
    variants = settings.get("variants") or {}
    if variant and variant not in variants:
        expected = "one of " + ", ".join(variants)
        raise InputError(f"unknown variant {model!r} under {key}", file=study["file"], expected=expected, remedy=nearest(variant, variants))
    return settings, variants.get(variant) or {}


@cache
def _written(name: str) -> dict[str, Any]:
    """The model's file, read once a process: a workflow of thousands of jobs asks for it at each. Not to be changed."""
    return read_yaml(ROOT / "models" / f"{name}.yaml")


def model_needs(study: Mapping[str, Any], model: str) -> list[str]:
    """The modalities without which `model` (`<name>` or `<name>+<variant>`) does not run in this study.

    They stand under `needs` in ``config/models/<name>.yaml``, where `tables` means every table of the cohort, `any` every modality it
    offers, and ``{option}`` what that option of the model says (a name, a list of names, or null); a variant may state its own.
    A study that points a model at some of its tables (`options.<name>.modality` or `modalities`) needs those.
    Raises `InputError` for an unknown model or variant.
    """
    settings, variant = model_file(study, model, "models")
    options = model_options(study, model)
    chosen = options.get("modalities") or ([options["modality"]] if options.get("modality") else None)
    needs = chosen or variant.get("needs") or settings["needs"]
    preset = (settings.get("presets") or {}).get(study["name"]) or {}
    options = {**settings["model"], **(preset.get("model") or {}), **(variant.get("model") or {}), **options}
    return list(dict.fromkeys(modality for need in needs for modality in _meant(study, need, options)))


def _meant(study: Mapping[str, Any], need: str, options: Mapping[str, Any]) -> list[str]:
    """The modalities that one entry of `needs` stands for."""
    if need == "tables":
        return sorted(study["tables"]) or [need]
    if need == "any":
        return modalities(study)
    if need.startswith("{"):
        value = options[need.strip("{}")]
        return [] if value is None else [value] if isinstance(value, str) else list(value)
    return [need]


def model_options(study: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Constructor arguments that the study states: under `options.<name>`, and over them under `options.<name>+<variant>`.

    What `options.<name>` says of modalities does not hold for a variant that states its own needs.
    """
    name, plus, _ = model.partition("+")
    options = dict(study["options"].get(name, {}))
    if model_file(study, model, "models")[1].get("needs"):
        options = {key: value for key, value in options.items() if key not in ("modality", "modalities")}
    return options | (study["options"].get(model, {}) if plus else {})


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
        model_file(study, model, "models" if model in study["models"] else "reference")
        lacking = [m for m in model_needs(study, model) if m not in offered]
        predicts = model_file(study, model, "models")[0].get("endpoint", kind(study))
        if lacking:
            why = f" ({slides_absent(study)})" if "wsi" in lacking else ""
            words = " and ".join("slides" if m == "wsi" else m for m in lacking)
            reasons[model] = f"needs {words}, which cohort {study['name']} lacks{why}"
        elif predicts != kind(study):
            reasons[model] = f"predicts a {predicts} endpoint, and {study['endpoint']} is a {kind(study)} one"
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


def fold_settings(study: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Everything that training the folds of `model` depends on, and nothing else; `configured` is what its file says."""
    name, _, variant = model.partition("+")
    keys = ("name", "seed", "bins", "bag_scaling")
    return {
        **{key: study[key] for key in keys},
        "training": {key: value for key, value in study["training"].items() if key != "folds_per_job"},
        "configured": load_model_config(name, variant or None, preset=study["name"]),
        "endpoint": study["endpoint"],
        "kind": kind(study),
        "model": model,
        "modalities": model_needs(study, model),
        "options": model_options(study, model),
        "omics": {key: study["omics"][key] for key in ("scaling", "impute", "clip", "select")},
        "tables": tables(study),
        "table_scaling": {name: {key: table[key] for key in ("scaling", "impute")} for name, table in study["tables"].items()},
    }


def folds_per_job(study: Mapping[str, Any], usual: int | None = None) -> int | None:
    """How many folds of a model one job trains; None: all of them. usual: what `auto` stands for, a cluster's profile says 1."""
    chosen = study["training"].get("folds_per_job", "auto")
    return usual if chosen == "auto" else int(chosen)


def missing(study: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of the trained models when patients lack modalities: `scenarios`, `fill`, `draws`.

    A scenario is ``{name, without: modality}`` or ``{name, drop: probability}``. Raises `InputError` when the study lists none, the same
    one twice, or a modality that the cohort does not offer.
    """
    chosen, offered, scenarios = study["missing"], modalities(study), []
    for entry in chosen["scenarios"]:
        (kind_of, value), *_ = entry.items()
        if kind_of == "without" and value not in offered:
            raise InputError(
                f"unknown modality {value!r} under missing.scenarios",
                file=study["file"],
                expected="one of " + ", ".join(offered),
                remedy=nearest(value, offered),
            )
        scenarios.append({"name": f"without {value}" if kind_of == "without" else f"drop {value:g}", kind_of: value})
    names = [scenario["name"] for scenario in scenarios]
    if len(set(names)) < len(names):
        raise InputError("a scenario is listed twice under missing.scenarios", file=study["file"], found=", ".join(names))
    if not names:
        remedy = "List some under missing.scenarios, e.g. {without: wsi} or {drop: 0.4}."
        raise InputError("the study asks for no scenario of missing modalities", file=study["file"], remedy=remedy)
    return {"scenarios": scenarios, "fill": chosen["fill"], "draws": chosen["draws"]}


def report_settings(study: Mapping[str, Any]) -> dict[str, Any]:
    """What the report states under provenance: settings that the figures depend on, without the machine's paths."""
    settings = {key: study[key] for key in ("seed", "endpoint", "bins", "training", "options", "evaluation", "controls")}
    settings["splits"] = {key: value for key, value in splits(study).items() if key != "pattern"}
    settings["omics"] = {key: study["omics"][key] for key in ("scaling", "impute", "clip", "select")}
    if "wsi" in modalities(study):
        settings["slides"] = {key: study["slides"][key] for key in ("encoder", "patches")}
    if study["missing"]["scenarios"]:
        asked = missing(study)
        settings["missing"] = asked | {"scenarios": [scenario["name"] for scenario in asked["scenarios"]]}
    return settings
