"""What a trained fold leaves behind: weights as safetensors, and one YAML that rebuilds the model, its scaling and its time bins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import read_yaml
from pipeline.errors import InputError
from pipeline.files import atomic, require_file, write_text
from pipeline.models import build_model
from pipeline.models.interface import Inputs, SurvivalModel
from pipeline.omics.scaling import Scaler

TRAIN_AGAIN = "Delete the model's folds_*.tsv and run again: a fold whose files changed is trained again."
ALWAYS = ("model", "fold", "seed", "failure")  # keys of model.yaml
TRAINED = ("modalities", "time_bins", "inputs", "options", "columns", "scaling")  # of a fold that did not fail


def save_fold(weights: Path, description: Path, model: SurvivalModel | None, facts: Mapping[str, Any]) -> None:
    """Write `weights` (safetensors; without a tensor for a failed fold) and `description` (YAML), each atomically."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()} if model is not None else {}
    with atomic(weights) as temporary:
        save_file(tensors, temporary)
    write_text(description, yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True))


def inputs_to_dict(inputs: Inputs) -> dict[str, Any]:
    """`Inputs` as plain values."""
    groups = {name: list(sizes) for name, sizes in inputs.groups.items()}
    return {"bags": dict(inputs.bags), "vectors": dict(inputs.vectors), "groups": groups, "bins": inputs.bins}


def load_fold(weights: Path, description: Path) -> tuple[SurvivalModel, dict[str, Scaler], dict[str, Any]]:
    """The trained model in eval mode, its scalers by modality, and the description. Raises `InputError` for a failed fold."""
    facts = read_description(description)
    if facts["failure"]:
        raise InputError(f"the fold failed: {facts['failure']}", file=description)
    try:
        offered = facts["inputs"]
        groups = {name: tuple(sizes) for name, sizes in offered["groups"].items()}
        inputs = Inputs(offered["bags"], offered["vectors"], groups, offered["bins"])
        name, _, variant = facts["model"].partition("+")
        scaling = {modality: Scaler.from_dict(saved) for modality, saved in facts["scaling"].items()}
        model = build_model(name, inputs, variant or None, **facts["options"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"is not the whole description of a fold ({type(error).__name__}: {error})"
        raise InputError(problem, file=description, remedy=TRAIN_AGAIN) from error
    load_weights(model, weights)
    return model.eval(), scaling, facts


def read_description(path: Path) -> dict[str, Any]:
    """``model.yaml`` of a fold. Raises `InputError` where it is no YAML, or a part of it is lacking."""
    facts = read_yaml(path)
    lacking = [key for key in (*ALWAYS, *(() if facts.get("failure") else TRAINED)) if key not in facts]
    if lacking:
        problem, expected = "is not the whole description of a fold", "the keys " + ", ".join(lacking)
        raise InputError(problem, file=path, found=", ".join(facts), expected=expected, remedy=TRAIN_AGAIN)
    return facts


def load_weights(model: SurvivalModel, weights: Path) -> None:
    """Put the weights of a fold into its model. Raises `InputError` for a file that is absent, damaged, or another model's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_file(weights, "file of weights", remedy=TRAIN_AGAIN)
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:  # RuntimeError: other names or shapes than the model's
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot be read as the weights of its model ({reason})", file=weights, remedy=TRAIN_AGAIN) from error
