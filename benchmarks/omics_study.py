"""What a whole study of genes costs, in this checkout and another, on the same work: many short trainings, no slides.

Run: ``python benchmarks/omics_study.py DATA_DIR [--before CHECKOUT] [--cohort blca] [--cores 2]``; DATA_DIR holds the public tables
(config/README.md). Each checkout makes ``results/<cohort>/summary.tsv`` by its own workflow in an empty folder. Prints a TSV: who, jobs
of training, folds, cpu_s (user and system, of everything), train_cpu_s (of the trainings, as they measured themselves), wall_s, and same:
how many of the folds' predictions have the bytes of the first row's.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(checkout: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Make the study in `folder`; what it took."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", checkout / "Snakefile", "--directory", folder]
    command += ["--workflow-profile", checkout / "workflow/profiles/default", "--cores", options.cores]
    command += ["--config", f"data_dir={options.data_dir.resolve()}", "--", f"results/{options.cohort}/summary.tsv"]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: the study failed\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    results = folder / "results" / options.cohort
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    jobs = len(list((results / "logs").glob("train_*.log")))
    return {
        "jobs": jobs,
        "cpu_s": cpu,
        "train_cpu_s": sum(map(cpu_time, results.glob("benchmarks/train_*.tsv"))),
        "wall_s": time.monotonic() - start,
    }


def cpu_time(benchmark: Path) -> float:
    """CPU seconds of a file of `benchmarks/`; 0 where Snakemake measured none."""
    with open(benchmark) as file:
        value = next(csv.DictReader(file, delimiter="\t"))["cpu_time"]
    return float(value) if value not in ("", "-", "NA") else 0.0


def predictions(folder: Path) -> dict[str, bytes]:
    """The predictions of every fold, by path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("results/*/*/fold*/predictions.tsv")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--before", type=Path, help="another checkout of the project")
    parser.add_argument("--cohort", default="blca")
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    checkouts = {"before": options.before} if options.before else {}
    first = None
    print(*("who", "jobs", "folds", "cpu_s", "train_cpu_s", "wall_s", "same"), sep="\t")
    for who, checkout in {**checkouts, "after": Path(__file__).resolve().parents[1]}.items():
        with tempfile.TemporaryDirectory() as name:
            took, made = run(checkout, Path(name), options), predictions(Path(name))
        first = first or made
        same = sum(first.get(path) == content for path, content in made.items())
        figures = (f"{took[key]:.0f}" for key in ("cpu_s", "train_cpu_s", "wall_s"))
        print(who, took["jobs"], len(made), *figures, same, sep="\t", flush=True)


if __name__ == "__main__":
    main()
