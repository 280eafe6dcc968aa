"""What a training costs, counted instead of clocked.

A clock differs from run to run; `summary.tsv` has to be the same byte for byte wherever it is made. So its `train_seconds`
are reference seconds: floating-point operations divided by a fixed rate. What the clock said stands in `results/<cohort>/benchmarks/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.cohort.loader import CohortData
from pipeline.models.interface import SurvivalModel

REFERENCE_RATE = 2e10  # operations a second: about one CPU core of 2020 on these small matrices (our choice)
BACKWARD = 2.0  # a backward pass costs two forward passes


def training_seconds(model: SurvivalModel, data: CohortData, patients: Sequence[str], epochs: int, limit: int | None) -> float:
    """Reference seconds of `epochs` passes over `patients`, by one forward pass of the median bag (of at most `limit` patches)."""
    lengths = data.lengths(patients)
    median = patients[sorted(range(len(patients)), key=lambda i: (lengths[i], patients[i]))[len(patients) // 2]]
    counter = OperationCounter()
    device = next(iter(model.state_dict().values())).device
    model.eval()
    with torch.no_grad(), counter:
        model(data.batch([median], limit).to(device))
    return round(counter.operations * (1 + BACKWARD) * len(patients) * epochs / REFERENCE_RATE, 3)


def _product(out: Any, *operands: Any) -> int:
    """Of matrices, of batches of them, and of those that are added to something: its length n of an inner sum, twice an element."""
    return 2 * prod(out.shape) * operands[-2].shape[-1]


def _convolution(out: Any, x: Any, weight: Any, *options: Any) -> int:
    transposed = options[4]
    return 2 * prod((x if transposed else out).shape) * prod(weight.shape[1:])


def _attention(_: Any, query: Any, key: Any, value: Any, *__: Any) -> int:
    *batch, queries, width = query.shape
    return 2 * prod(batch) * queries * key.shape[-2] * (width + value.shape[-1])


aten = torch.ops.aten
COUNTED: dict[Any, Callable[..., int]] = {
    aten.mm: _product,
    aten.bmm: _product,
    aten.addmm: _product,
    aten.baddbmm: _product,
    aten.convolution: _convolution,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
}


class OperationCounter(TorchDispatchMode):
    """Counts in `operations` what the products inside it cost, as `torch.utils.flop_counter` does.

    That one imports Triton, and with it (as any mode that does not say `_should_skip_dynamo`) PyTorch's compiler: 2 CPU seconds a process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in COUNTED:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula := COUNTED.get(func.overloadpacket):
            self.operations += formula(out, *args)
        return out
