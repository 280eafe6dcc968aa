"""`snakemake --use-conda` for real: environments solved, installed and activated, under a Snakemake that has nothing but itself.

What this proves and what it does not: docs/conda.md.
"""

import asyncio
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from pipeline.evaluation.summary import read_summary

pytest.importorskip("rattler", reason="py-rattler solves and installs conda packages here: pip install py-rattler")
from tests.cluster import conda_lab

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the packages are made for Linux on x86_64"),
]
ROOT = Path(__file__).resolve().parents[2]
SMALL = ("demo={patients: 24}", "models=[snn,survq]", "training={epochs: 4}", "slides={chunks: 1}", "splits={folds: 2}")
TARGET = "results/demo/summary.tsv"


def done(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that is removed afterwards: two gigabytes."""
    with tempfile.TemporaryDirectory(prefix="conda-lab-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def lab(folder) -> Path:
    """The folder of the channel and of the `conda` that installs from it."""
    version = f"torch=={conda_lab.TORCH}+cpu"
    if done(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder / "wheel", version).returncode:
        pytest.skip(f"pip finds no wheel {version}: set PIP_FIND_LINKS to a folder or PIP_EXTRA_INDEX_URL to an index that has it")
    (wheel,) = (folder / "wheel").glob("*.whl")
    conda_lab.build(folder / "lab", sorted((ROOT / "envs").glob("*.yaml")), wheel)
    return folder / "lab"


@pytest.fixture(scope="module")
def bare(folder) -> Path:
    """The Python of an environment that holds Snakemake and what it depends on, and none of our packages."""
    python = folder / "bare/bin/python"
    assert done(sys.executable, "-m", "venv", folder / "bare").returncode == 0
    installed = done(python, "-m", "pip", "install", "--quiet", f"snakemake=={metadata.version('snakemake')}")
    if installed.returncode:
        pytest.skip(f"Snakemake cannot be installed from the index: {installed.stderr[-300:]}")
    return python


@pytest.fixture(scope="module")
def checkout(folder) -> Path:
    """A copy of what a user has."""
    copy = folder / "checkout"
    for name in ("workflow", "src", "config", "envs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", copy)
    (copy / "profiles").symlink_to("workflow/profiles")
    return copy


def snakemake(bare: Path, lab: Path, checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake as a user would: in the checkout, `conda` in the path, nothing of this test's environment."""
    path = f"{bare.parent}:{lab / 'bin'}:{os.defpath}"
    environment = {"PATH": path, "HOME": str(checkout.parent), "LANG": "C.UTF-8"}
    return done(bare, "-m", "snakemake", *arguments, cwd=checkout, env=environment)


def run(bare: Path, lab: Path, checkout: Path) -> str:
    """The demo, made small, in conda environments; all that was printed."""
    ended = snakemake(bare, lab, checkout, "--cores", "2", "--use-conda", "--config", *SMALL, "--", TARGET)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-6000:]
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def environments(bare, lab, checkout) -> list[Path]:
    """The demo has run in these."""
    for module in ("numpy", "pandas", "torch", "scipy", "pipeline"):
        assert done(bare, "-c", f"import {module}").returncode != 0, f"{module} would be taken from Snakemake's environment"
    run(bare, lab, checkout)
    return sorted(path for path in (checkout / ".snakemake/conda").iterdir() if path.is_dir())


def test_the_demo_runs_in_environments_of_its_own(environments, checkout):
    summary = read_summary(checkout / TARGET)
    assert list(summary["model"]) == ["snn", "survq", "coxnet+clinical"]
    assert (summary["failed_folds"] == "").all()
    assert summary["c_index"].notna().all()
    assert len(environments) == 2
    say = "import sys, pandas; print(sys.prefix, end=' '); import torch; print(torch.__version__)"
    said = [done(path / "bin/python", "-I", "-c", say) for path in environments]
    assert [text.stdout.split()[0] for text in said] == [str(path) for path in environments]
    assert sorted(text.returncode for text in said) == [0, 1]  # the one of the analysis has no PyTorch
    assert [text.stdout.split()[1] for text in said if not text.returncode] == [f"{conda_lab.TORCH}+cpu"]


def test_a_second_run_has_nothing_to_do(environments, bare, lab, checkout):
    assert "Nothing to be done" in run(bare, lab, checkout)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_container_is_described_with_every_environment(bare, lab, checkout, kind):
    described = snakemake(bare, lab, checkout, "--config", f"torch={kind}", "--containerize")
    assert described.returncode == 0, described.stderr[-3000:]
    assert described.stdout.startswith("FROM ")
    for name in ("analysis", f"torch-{kind}"):
        assert f"COPY envs/{name}.yaml" in described.stdout
        lines = (checkout / f"envs/{name}.yaml").read_text().splitlines()
        assert all(f"#   {line}" in described.stdout for line in lines)


@pytest.mark.parametrize("name", ["analysis", "torch-cpu", "torch-gpu"])
def test_a_file_is_solved_with_versions_that_it_allows(lab, name):
    file = ROOT / f"envs/{name}.yaml"
    solved = {record.name.normalized: str(record.version) for record in asyncio.run(conda_lab.solve(lab, file))}
    for line in yaml.safe_load(file.read_text())["dependencies"]:
        package, wanted = re.fullmatch(r"([a-z0-9_-]+)(\W.+)", line).groups()
        assert solved[package] in SpecifierSet(f"=={wanted[1:]}.*" if wanted.startswith("=") else wanted), line
