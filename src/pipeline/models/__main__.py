"""``python -m pipeline.models [model]``: every model, or every variant of one, with its parameters and forward GFLOPs, as TSV."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import pandas as pd
import torch

from pipeline.errors import InputError
from pipeline.models.interface import SurvivalModel
from pipeline.models.reference import describe, forward_flops, parameters, reference_patient
from pipeline.models.registry import available_models, build_model, entry, model_variants


def table() -> pd.DataFrame:
    """One row a model, in its default variant, at the reference input of its specification."""
    rows = []
    for name in available_models():
        known = entry(name)
        described = {"model": name, "paper": known.paper, "modalities": ", ".join(known.modalities)}
        described["variants"] = ", ".join(model_variants(name))
        rows.append(described | cost(name)[1] | {"reference_input": describe(known.reference, known.patches)})
    return pd.DataFrame(rows)


def variants(name: str) -> pd.DataFrame:
    """One row a variant of a model, at the model's reference input: what it reads and costs, or why it cannot be built there.

    Raises `InputError` for an unknown model.
    """
    rows = []
    for variant in [None, *model_variants(name)]:
        row: dict[str, Any] = {"model": f"{name}+{variant}" if variant else name}
        try:
            model, figures = cost(name, variant)
            row |= {"modalities": ", ".join(model.modalities)} | figures
        except InputError as error:
            row["note"] = str(error)
        rows.append(row)
    return pd.DataFrame(rows, columns=["model", "modalities", "parameters", "forward_gflops", "note"]).convert_dtypes()


def cost(name: str, variant: str | None = None) -> tuple[SurvivalModel, dict[str, Any]]:
    """A model at its registered reference input, and its trainable parameters and operations of one forward pass there."""
    known = entry(name)
    torch.manual_seed(0)  # where tokens are routed, operations depend on the weights
    model = build_model(name, known.reference, variant)
    flops = forward_flops(model, reference_patient(known.reference, known.patches))
    return model, {"parameters": parameters(model), "forward_gflops": round(flops / 1e9, 4)}


def main() -> None:
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.models", description=__doc__)
    parser.add_argument("model", nargs="?", help="list its variants instead of all models")
    chosen = parser.parse_args().model
    try:
        (variants(chosen) if chosen else table()).to_csv(sys.stdout, sep="\t", index=False)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
