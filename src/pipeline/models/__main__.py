"""``python -m pipeline.models``: every model with its paper, variants, parameters and forward GFLOPs, as TSV."""

from __future__ import annotations

import sys

import pandas as pd

from pipeline.models.reference import describe, forward_flops, parameters, reference_patient
from pipeline.models.registry import available_models, build_model, entry, model_variants


def table() -> pd.DataFrame:
    """One row a model, in its default variant, at the reference input of its specification."""
    rows = []
    for name in available_models():
        known = entry(name)
        model = build_model(name, known.reference)
        flops = forward_flops(model, reference_patient(known.reference, known.patches))
        rows.append(
            {
                "model": name,
                "paper": known.paper,
                "modalities": ", ".join(known.modalities),
                "variants": ", ".join(model_variants(name)),
                "parameters": parameters(model),
                "forward_gflops": round(flops / 1e9, 4),
                "reference_input": describe(known.reference, known.patches),
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    table().to_csv(sys.stdout, sep="\t", index=False)
