"""Where a study's time goes, stage by stage, from the `benchmark:` files of its jobs.

Run after `make demo`: ``PYTHONPATH=src python benchmarks/demo_stages.py [results/demo]``. Prints the table of
`results/<cohort>/resources.tsv` and in it the share of all CPU hours; it needs no finished run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.report.resources import stages

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo") / "benchmarks"
    if not folder.is_dir():
        sys.exit(f"there is no {folder}: run `make demo` first")
    table = stages(folder)
    table.insert(4, "share", (table["cpu_hours"] / table["cpu_hours"].sum()).round(3))
    print(table.to_csv(sep="\t", index=False), end="")
