"""What a trained fold leaves behind: weights as safetensors, and one YAML that rebuilds the model, its scaling and its time bins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import read_yaml
from pipeline.errors import InputError
from pipeline.files import atomic, write_text
from pipeline.models import build_model
from pipeline.models.interface import Inputs, SurvivalModel
from pipeline.omics.scaling import Scaler


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
    from safetensors.torch import load_file

    facts = read_yaml(description)
    if facts["failure"]:
        raise InputError(f"the fold failed: {facts['failure']}", file=description)
    offered = facts["inputs"]
    groups = {name: tuple(sizes) for name, sizes in offered["groups"].items()}
    inputs = Inputs(offered["bags"], offered["vectors"], groups, offered["bins"])
    name, _, variant = facts["model"].partition("+")
    model = build_model(name, inputs, variant or None, **facts["options"])
    model.load_state_dict(load_file(weights))
    return model.eval(), {m: Scaler.from_dict(saved) for m, saved in facts["scaling"].items()}, facts
