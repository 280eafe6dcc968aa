"""Where a study's time goes, stage by stage, from the `benchmark:` files of its jobs.

Run after `make demo`: ``PYTHONPATH=src python benchmarks/demo_stages.py [results/demo]``. Prints a TSV: stage, jobs, wall seconds (summed
over jobs), CPU seconds, share of all CPU seconds, peak memory in MB.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

STAGE = re.compile(r"_?\d+$")  # a job's file is named after its rule, model or encoder, and its chunk or fold


def stages(folder: Path) -> pd.DataFrame:
    """One row a stage, in the order in which they were finished."""
    jobs = []
    for file in sorted((folder / "benchmarks").glob("*.tsv"), key=lambda f: f.stat().st_mtime):
        measured = pd.read_csv(file, sep="\t", na_values="-").fillna(0.0).iloc[0]
        jobs.append((STAGE.sub("", file.stem), measured["s"], measured["cpu_time"], measured["max_rss"]))
    table = pd.DataFrame(jobs, columns=["stage", "wall_s", "cpu_s", "peak_mb"])
    found = table.groupby("stage", sort=False).agg(
        jobs=("wall_s", "size"), wall_s=("wall_s", "sum"), cpu_s=("cpu_s", "sum"), peak_mb=("peak_mb", "max")
    )
    found.insert(3, "share", found["cpu_s"] / found["cpu_s"].sum())
    return found.round({"wall_s": 1, "cpu_s": 1, "share": 3, "peak_mb": 0}).reset_index()


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo")
    if not (folder / "benchmarks").is_dir():
        sys.exit(f"{folder} has no benchmarks: run `make demo` first")
    print(stages(folder).to_csv(sep="\t", index=False), end="")
