"""Ratios of two rearrangements that keep the function: grouped pathway encoders against the loop, folded co-attention against plain.

Run: ``PYTHONPATH=src python benchmarks/pathway_encoders.py``. Prints a TSV: what, batch, pass, slow ms, fast ms, ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.models import build_model
from pipeline.models.reference import reference_patient
from pipeline.models.registry import entry
from pipeline.models.survq import PATHWAYS
from pipeline.nn.pathways import GroupedEncoder

ROUNDS = 5


def milliseconds(forward: Callable[[], Tensor], parameters: list[nn.Parameter], backward: bool) -> float:
    """The fastest of `ROUNDS` passes."""
    best = float("inf")
    for _ in range(ROUNDS):
        for p in parameters:
            p.grad = None
        start = time.perf_counter()
        with torch.set_grad_enabled(backward):
            result = forward()
        if backward:
            result.sum().backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def report(what: str, batch: int, backward: bool, slow: float, fast: float) -> None:
    """One line of the table."""
    print(what, batch, "forward+backward" if backward else "forward", f"{slow:.1f}", f"{fast:.1f}", f"{slow / fast:.1f}", sep="\t")


def main() -> None:
    """Time both pairs."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print("what", "batch", "pass", "slow_ms", "fast_ms", "ratio", sep="\t")
    grouped = GroupedEncoder(PATHWAYS, 256, 0.25).to(device)
    loop = nn.ModuleList(grouped.network(g) for g in range(len(PATHWAYS))).to(device)
    for batch in (1, 8, 32):
        x = torch.randn(batch, sum(PATHWAYS), device=device)

        def one_by_one(x: Tensor = x) -> Tensor:
            return torch.stack([net(part) for net, part in zip(loop, x.split(PATHWAYS, dim=1), strict=True)], dim=1)

        for backward in (False, True):
            slow = milliseconds(one_by_one, list(loop.parameters()), backward)
            report(
                "331 pathway networks: loop / grouped",
                batch,
                backward,
                slow,
                milliseconds(lambda x=x: grouped(x), [*grouped.parameters()], backward),
            )
    known = entry("mcat")
    patient = reference_patient(known.reference, known.patches).to(device)
    models = [build_model("mcat", known.reference, folded=folded).to(device) for folded in (False, True)]
    for backward in (False, True):
        slow, fast = (milliseconds(lambda m=m: m(patient).logits, list(m.parameters()), backward) for m in models)
        report("MCAT, 4096 patches: plain / folded", 1, backward, slow, fast)


if __name__ == "__main__":
    main()
