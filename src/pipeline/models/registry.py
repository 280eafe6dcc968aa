"""Which models there are, and how one is built: a method is one file here and one ``config/models/<name>.yaml``.

The file registers its class with `register`; the YAML holds every constructor argument (`model`), the protocol (`training`)
and what overrides either: `presets` of a cohort, over them named `variants`. A file is imported when its model is asked for.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import ROOT, read_yaml
from pipeline.errors import InputError, nearest

if TYPE_CHECKING:  # the interface imports torch, which a mere list of names should not cost
    from pipeline.models.interface import Inputs, SurvivalModel

NOT_MODELS = {"interface", "registry", "reference", "__main__"}


@dataclass(frozen=True)
class Entry:
    """A registered model: its class, its paper, what it reads, and the input at which parameters and FLOPs are stated."""

    model: type[SurvivalModel]
    paper: str
    modalities: tuple[str, ...]
    reference: Inputs
    patches: int | Mapping[str, int]


_ENTRIES: dict[str, Entry] = {}


def register(
    *, paper: str, modalities: tuple[str, ...], reference: Inputs, patches: int | Mapping[str, int] = 0
) -> Callable[[type[SurvivalModel]], type[SurvivalModel]]:
    """Class decorator: register the one model of this file under the file's name.

    reference, patches: the `Inputs` and the bag length (one, or by modality) at which its specification states parameters and FLOPs.
    """

    def enter(model: type[SurvivalModel]) -> type[SurvivalModel]:
        _ENTRIES[model.__module__.rpartition(".")[2]] = Entry(model, paper, modalities, reference, patches)
        return model

    return enter


def available_models() -> list[str]:
    """Names of all models, sorted; imports none of them."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name not in NOT_MODELS)


def entry(name: str) -> Entry:
    """The registered model; raises `InputError` with the nearest name for an unknown one."""
    _known("model", name, available_models())
    importlib.import_module(f"pipeline.models.{name}")
    return _ENTRIES[name]


def parse_model(text: str) -> tuple[str, str | None]:
    """``"abmil+survpath"`` → ``("abmil", "survpath")``, ``"abmil"`` → ``("abmil", None)``; raises `InputError` if there is no such."""
    name, plus, variant = text.partition("+")
    load_model_config(name, variant if plus else None)
    return name, variant if plus else None


def model_variants(name: str, *, config: Path | None = None) -> list[str]:
    """The variants that ``config/models/<name>.yaml`` lists, in its order."""
    return list(_settings(name, config)[0].get("variants") or {})


def load_model_config(name: str, variant: str | None = None, *, preset: str | None = None, config: Path | None = None) -> dict[str, Any]:
    """The settings of a model, over them those of its preset (a cohort's name; nothing where it has none for it) and of its variant.

    Returns `paper`, `modalities` (what the model reads here), `model` (constructor arguments) and `training` (the protocol).
    config: the configuration folder (default: the repository's, or the environment variable SLIDE2SURV_CONFIG).
    Raises `InputError` for an unknown model, variant or key, with the nearest right one.
    """
    settings, file = _settings(name, config)
    variants = settings.get("variants") or {}
    chosen: Mapping[str, Any] = {}
    if variant is not None:
        _known(f"variant of {name}", variant, variants, file=file)
        chosen = variants[variant] or {}
    merged = {"paper": settings["paper"], "modalities": chosen.get("needs", settings["needs"])}
    of_cohort = (settings.get("presets") or {}).get(preset) or {}
    for block in ("model", "training"):
        merged[block] = dict(settings[block])
        for where, layer in ((f"preset {preset}", of_cohort), (f"variant {variant}", chosen)):
            changes = layer.get(block) or {}
            for key in changes:
                _known(f"key {block}.<key> in {where}", key, settings[block], file=file)
            merged[block] |= changes
    return copy.deepcopy(merged)


def build_model(name: str, inputs: Inputs, variant: str | None = None, **overrides: Any) -> SurvivalModel:
    """A new model for what a cohort offers, with random weights from torch's current seed.

    overrides: constructor arguments over those of ``config/models/<name>.yaml`` and of the variant.
    Raises `InputError` for an unknown model, variant or argument, and when `inputs` lacks what the model reads.
    """
    arguments = load_model_config(name, variant)["model"]
    for key in overrides:
        _known(f"option of {name}", key, arguments)
    return entry(name).model(inputs, **{**arguments, **overrides})


def _settings(name: str, config: Path | None) -> tuple[dict[str, Any], Path]:
    _known("model", name, available_models())
    file = (config or ROOT) / "models" / f"{name}.yaml"
    return _read(file, file.stat().st_mtime_ns if file.is_file() else 0), file


@cache
def _read(file: Path, _: int) -> dict[str, Any]:
    """The file as it is since that time: a workflow of thousands of jobs asks for it at each. Not to be changed."""
    return read_yaml(file)


def _known(kind: str, word: str, known: Any, *, file: Path | None = None) -> None:
    if word not in known:
        raise InputError(f"unknown {kind}", file=file, found=word, expected="one of " + ", ".join(known), remedy=nearest(word, known))
