"""A cohort of ten thousand slides that need not hold anything: what planning a run costs before any of it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import yaml

from pipeline.config import read_yaml
from tests.workflow.conftest import ROOT, command

SLIDES, CHUNKS, MODELS, FOLDS = 10_000, 100, 40, 5


def lay_out(folder: Path, *, slides: int = SLIDES, chunks: int = CHUNKS) -> Path:
    """Tables and slide files of the cohort `large` in `folder`, and a configuration that knows it, whose path is returned."""
    config = folder / "config"
    shutil.copytree(ROOT / "config", config)  # makes `folder`, too
    study = {
        "title": "Ten thousand slides",
        "endpoints": {"os": {"table": "clinical.tsv", "time": "time", "event": "event"}},
        "omics": {"tables": [{"file": "expression.tsv", "kind": "rnaseq"}], "groups": {"families": {"file": "families.tsv"}}},
        "slides": {"folder": "slides", "table": "slides.tsv", "encoder": "stain_texture", "chunks": chunks},
        "splits": {"folds": FOLDS},
        "models": models()[:MODELS],
        "reference": None,
    }
    (config / "cohorts/large.yaml").write_text(yaml.safe_dump(study))
    (folder / "slides").mkdir()
    names = [f"S{i:05d}" for i in range(slides)]
    for name in names:
        (folder / "slides" / f"{name}.svs").touch()
    table("slides.tsv", folder, "slide_id\tpatient_id\tpath", [f"{n}\tP{n}\t{n}.svs" for n in names])
    table("clinical.tsv", folder, "patient_id\ttime\tevent", [f"P{n}\t{i % 90 + 1}\t{i % 2}" for i, n in enumerate(names)])
    for name in ("expression.tsv", "families.tsv"):
        (folder / name).touch()
    return config


def snakemake(folder: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    """The command that makes the cohort's summary, and its environment."""
    arguments = [*options, "--config", f"data_dir={folder}", "--", "results/large/summary.tsv"]
    return command(folder, *arguments), {**os.environ, "SLIDE2SURV_CONFIG": str(folder / "config")}


def finish(folder: Path) -> None:
    """Empty files in place of all outputs, and the records of the jobs that would have made them."""
    line, environment = snakemake(folder, "--summary")
    listed = subprocess.run(line, env=environment, check=True, capture_output=True, text=True).stdout
    for row in listed.splitlines()[1:]:
        output, _, rule, *_ = row.split("\t")
        (folder / output).parent.mkdir(parents=True, exist_ok=True)
        if rule == "features":  # a folder a chunk
            (folder / output).mkdir(exist_ok=True)
        else:
            (folder / output).touch()
    line, environment = snakemake(folder, "--touch", "--forceall", "--quiet")
    subprocess.run(line, env=environment, check=True, capture_output=True)


def table(name: str, folder: Path, header: str, rows: list[str]) -> None:
    (folder / name).write_text("\n".join([header, *rows]) + "\n")


def models() -> list[str]:
    """Models and variants that slides and genes are enough for."""
    found = []
    for name in ("abmil", "adamhf", "hdmoe", "mcat", "snn"):
        variants = read_yaml(ROOT / "config/models" / f"{name}.yaml").get("variants") or {}
        found += [name, *(f"{name}+{variant}" for variant, changes in variants.items() if not (changes or {}).get("needs"))]
    return found
