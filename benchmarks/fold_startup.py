"""What a fold's job costs before its first epoch: imports and reading, as ratios to `import torch` in the same run.

Run after `make demo`: ``PYTHONPATH=src python benchmarks/fold_startup.py``. Prints a TSV: what, seconds, ratio.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 5
IMPORTS = "import pipeline.training.fold"
READING = f"""{IMPORTS}
from pathlib import Path
from pipeline import study
from pipeline.config import ROOT, read_yaml, validate
from pipeline.training.fold import Fold
demo = study.load_study(validate(read_yaml(ROOT / "config.yaml"), "config", "config.yaml"), "demo")
results = Path("results/demo")
files = dict(patients=results / "cohort/patients.tsv", splits=results / "cohort/splits.tsv", matrix=results / "omics/omics.h5",
             groups=results / "omics/groups.tsv", manifest=results / "slides/manifest-stain_texture.tsv")
Fold(study.fold_settings(demo, "mcat"), 0, files, dict(seed=1))
"""


def seconds(code: str) -> float:
    """Wall time of a new Python process that runs `code`, the best of `ROUNDS`."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    if not Path("results/demo/summary.tsv").is_file():
        sys.exit("results/demo is not there: run `make demo` first")
    torch = seconds("import torch")
    print("what\tseconds\tratio")
    for name, code in (("import torch", "import torch"), ("imports of a fold", IMPORTS), ("imports and reading (mcat, demo)", READING)):
        took = torch if name == "import torch" else seconds(code)
        print(f"{name}\t{took:.2f}\t{took / torch:.2f}")
