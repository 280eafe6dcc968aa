"""Rearrangements that keep the function, against the plain form: 331 pathway networks at once, folded co-attention.

Run: ``PYTHONPATH=src python benchmarks/pathway_encoders.py [--threads 1 2 …] [--rounds 15] [--widths 256 64 …]``. Prints a TSV:

- pathway networks, loop against grouped: threads, width, groups (`levelled`: 4 distinct sizes; `spread`: as in the published table, 1 to
  199 with 75 distinct ones), batch, pass, ms of both, ratio; then what the memory of this machine allows: limit_ms = the bytes that must
  move at the speed of a plain read and write measured beside it, of_limit = how much of that speed the grouped form reaches,
  possible = the ratio at the limit. Each weight is read once forward; backward those of the second layer are read once more and every
  gradient is written once. At batch 1 there are 2 operations a weight of 4 bytes, so nothing but memory counts.
- MCAT at 4096 patches, plain against folded.

The loop pays for 662 layers whatever they hold. At width 64 and below, or on many cores, that is most of its time and grouping removes it;
at width 256 one core spends a good part of the loop's time on 97 MB of weights, which no arrangement of them avoids.

With one thread on a CPU the times are those of the processor, so that others on the machine count little.
The gradients of a step at width 256 are fresh memory, 87 MB of small pages, cleared by the kernel in every step. With
``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=10000000000`` in the environment glibc keeps them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from itertools import product
from statistics import NormalDist

import torch
from torch import Tensor, nn

from pipeline.models import build_model
from pipeline.models.reference import reference_patient
from pipeline.models.registry import entry
from pipeline.models.survq import PATHWAYS
from pipeline.nn.pathways import GroupedEncoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COLUMNS = ["what", "threads", "width", "groups", "batch", "pass", "slow_ms", "fast_ms", "ratio", "limit_ms", "of_limit", "possible"]
PASSES = {"forward, eval": (False, False), "forward, training": (True, False), "forward+backward": (True, True)}


def spread() -> tuple[int, ...]:
    """281 sizes of 1 to 69 around a median of 6, and 50 of 31 to 199 around 170: quantiles, no randomness."""
    small = [math.exp(NormalDist(1.8, 0.85).inv_cdf((i + 0.5) / 281)) for i in range(281)]
    large = [NormalDist(165, 45).inv_cdf((i + 0.5) / 50) for i in range(50)]
    sizes = [min(69, max(1, round(x))) for x in small] + [min(199, max(31, round(x))) for x in large]
    return tuple(sizes[i * 127 % len(sizes)] for i in range(len(sizes)))  # dealt over the positions


def milliseconds(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """The fastest of `rounds` of each run, taken in turns so that all meet the same machine."""
    clock = time.process_time if DEVICE == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for at, run in enumerate(runs):
            start = clock()
            run()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            best[at] = min(best[at], (clock() - start) * 1e3)
    return best


def passing(forward: Callable[[], Tensor], module: nn.Module, training: bool, backward: bool) -> Callable[[], None]:
    """One pass of a module, its gradients cleared before."""

    def run() -> None:
        module.train(training)
        for p in module.parameters():
            p.grad = None
        with torch.set_grad_enabled(backward):
            result = forward()
        if backward:
            result.sum().backward()

    return run


def encoders(groups: str, sizes: tuple[int, ...], threads: int, width: int, batch: int, rounds: int) -> None:
    """Three lines: loop against grouped in every pass."""
    grouped = GroupedEncoder(sizes, width, 0.25).to(DEVICE)
    loop = nn.ModuleList(grouped.network(g) for g in range(len(sizes))).to(DEVICE)
    x = torch.randn(batch, sum(sizes), device=DEVICE)
    memory = torch.ones(100_000_000 // 4, device=DEVICE)

    def one_by_one() -> Tensor:
        return torch.stack([net(part) for net, part in zip(loop, x.split(sizes, dim=1), strict=True)], dim=1)

    all_bytes, second = (sum(p.numel() for p in grouped.parameters()) * 4, grouped.weight_out.numel() * 4)
    for name, (training, backward) in PASSES.items():
        runs = [passing(one_by_one, loop, training, backward), passing(lambda: grouped(x), grouped, training, backward)]
        slow, fast, read, write = milliseconds([*runs, lambda: memory.sum(), lambda: memory.fill_(1.0)], rounds)
        limit = (all_bytes * read + backward * (second * read + all_bytes * write)) / 1e8
        figures = [f"{slow:.1f}", f"{fast:.1f}", f"{slow / fast:.1f}", f"{limit:.1f}", f"{limit / fast:.2f}", f"{slow / limit:.1f}"]
        print("331 pathway networks", threads, width, groups, batch, name, *figures, sep="\t", flush=True)


def coattention(threads: int, rounds: int) -> None:
    """Two lines: MCAT plain against folded."""
    known = entry("mcat")
    patient = reference_patient(known.reference, known.patches).to(DEVICE)
    models = [build_model("mcat", known.reference, folded=folded).to(DEVICE) for folded in (False, True)]
    for name in ("forward, eval", "forward+backward"):
        slow, fast = milliseconds([passing(lambda m=m: m(patient).logits, m, *PASSES[name]) for m in models], rounds)
        print("MCAT, 4096 patches", threads, "", "", 1, name, f"{slow:.1f}", f"{fast:.1f}", f"{slow / fast:.1f}", sep="\t", flush=True)


def main() -> None:
    """Time all pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", nargs="*", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--widths", nargs="*", type=int, default=[256, 64])
    chosen = parser.parse_args()
    torch.manual_seed(0)
    print(*COLUMNS, sep="\t")
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        for groups, sizes in (("levelled", PATHWAYS), ("spread", spread())):
            for width, batch in product(chosen.widths, (1, 8, 32)):
                encoders(groups, sizes, threads, width, batch, chosen.rounds)
        coattention(threads, chosen.rounds)


if __name__ == "__main__":
    main()
