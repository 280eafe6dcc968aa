"""What a process that trains costs before its first epoch, in this checkout and another: CPU seconds beside those of `import torch`.

Run: ``python benchmarks/fold_startup.py [--before CHECKOUT]``. Each measurement is the least of several processes of their own, one thread.
*ready to train*: imports, a small network, its optimiser, and the count of its operations, as every process of training needs them.
A job of many folds pays that once; before it, each fold did. Prints a TSV: what, who, cpu_s, of_torch.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

ROUNDS = 5
TORCH = "import torch"
IMPORTS = "import pipeline.training.fold"
READY = f"""{IMPORTS}
import numpy as np
from pipeline.cohort.loader import CohortData
from pipeline.models import build_model
from pipeline.models.interface import Inputs
from pipeline.training.cost import training_seconds
from pipeline.training.protocol import Protocol
model = build_model("snn", Inputs(vectors={{"omics": 8}}))
Protocol().make_optimizer(model)
training_seconds(model, CohortData({{"omics": ({{"a": 0}}, np.zeros((1, 8), np.float32))}}), ["a"], 1, None)
"""


def cpu_seconds(code: str, source: Path) -> float:
    """User and system time of a new Python process that runs `code` with `source` on its path, the least of `ROUNDS`."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    least = float("inf")
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return least


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout of the project")
    checkouts = {"after": Path(__file__).resolve().parents[1]}
    if before := parser.parse_args().before:
        checkouts = {"before": before, **checkouts}
    torch = cpu_seconds(TORCH, checkouts["after"] / "src")
    print("what\twho\tcpu_s\tof_torch")
    print(f"{TORCH}\t\t{torch:.2f}\t1")
    for what, code in (("imports", IMPORTS), ("ready to train", READY)):
        for who, checkout in checkouts.items():
            took = cpu_seconds(code, checkout / "src")
            print(f"{what}\t{who}\t{took:.2f}\t{took / torch:.2f}", flush=True)


if __name__ == "__main__":
    main()
