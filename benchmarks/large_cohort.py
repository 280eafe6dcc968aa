"""What deciding what to run costs for 10,000 slides and 40 models on five folds, beside one job a slide: CPU seconds and memory.

``PYTHONPATH=src:. python benchmarks/large_cohort.py [--plain]``; prints a TSV: what, CPU seconds, peak memory in MB, ratio to an
empty workflow in the same run. ``--plain`` adds about one job a slide and stage, which takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.workflow.large import SLIDES, finish, lay_out, snakemake


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """CPU seconds and peak memory in MB."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            sys.exit(output.read())
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty.smk").write_text("rule all:\n    input: []\n")
        empty = [sys.executable, "-m", "snakemake", "-n", "--snakefile", str(folder / "empty.smk"), "--directory", str(folder / "empty")]
        start, _ = measure(empty, dict(os.environ))
        print("what\tcpu_s\tpeak_mb\tratio_to_empty")

        def row(what: str, place: Path) -> None:
            seconds, memory = measure(*snakemake(place, "-n", "--quiet"))
            print(f"{what}\t{seconds:.1f}\t{memory:.0f}\t{seconds / start:.1f}", flush=True)

        print(f"an empty workflow\t{start:.1f}\t\t1.0")
        chunked = folder / "chunked"
        lay_out(chunked)
        row("dry run", chunked)
        finish(chunked)
        row("nothing to be done", chunked)
        if "--plain" in sys.argv:
            plain = folder / "plain"
            lay_out(plain, chunks=SLIDES)
            row("dry run, about a chunk a slide", plain)


if __name__ == "__main__":
    main()
