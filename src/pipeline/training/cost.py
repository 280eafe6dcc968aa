"""What a training costs, counted instead of clocked.

A clock differs from run to run; `summary.tsv` has to be the same byte for byte wherever it is made. So its `train_seconds`
are reference seconds: floating-point operations divided by a fixed rate. What the clock said stands in `results/<cohort>/benchmarks/`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.cohort.loader import CohortData
from pipeline.models.interface import SurvivalModel

REFERENCE_RATE = 2e10  # operations a second: about one CPU core of 2020 on these small matrices (our choice)
BACKWARD = 2.0  # a backward pass costs two forward passes


def training_seconds(model: SurvivalModel, data: CohortData, patients: Sequence[str], epochs: int, limit: int | None) -> float:
    """Reference seconds of `epochs` passes over `patients`, by one forward pass of the median bag (of at most `limit` patches)."""
    from torch.utils.flop_counter import FlopCounterMode  # 0.35 s, after the training rather than before it

    lengths = [max((store.length(p) for store in data.bags.values()), default=0) for p in patients]
    median = patients[sorted(range(len(patients)), key=lambda i: (lengths[i], patients[i]))[len(patients) // 2]]
    counter = FlopCounterMode(display=False)
    device = next(iter(model.state_dict().values())).device
    model.eval()
    with torch.no_grad(), counter:
        model(data.batch([median], limit).to(device))
    return round(counter.get_total_flops() * (1 + BACKWARD) * len(patients) * epochs / REFERENCE_RATE, 3)
