"""Running the real workflow in a folder of its own, and the demo that is made once for all tests."""

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TARGETS = ("results/demo/summary.tsv", "results/demo/report.html")
ROOT = Path(__file__).resolve().parents[2]


def command(folder: Path, *arguments: str, cores: int = 2, root: Path = ROOT) -> list[str]:
    """The command line of a run in `folder`; root: where the workflow lies."""
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), "--directory", str(folder)]
    profile = ["--workflow-profile", str(root / "workflow/profiles/default")]
    return [*snakemake, *profile, "--cores", str(cores), *arguments]


def run(folder: Path, *arguments: str, cores: int = 2, fails: bool = False, root: Path = ROOT) -> str:
    """Run Snakemake in `folder`; returns everything it printed, after checking how it ended."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command(folder, *arguments, cores=cores, root=root), capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, text[-6000:]
    return text


@contextmanager
def shared(factory: pytest.TempPathFactory, worker_id: str, name: str) -> Iterator[Path]:
    """A folder that all processes of the tests share; inside, this one alone may look at it and fill it."""
    base = factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / f"shared-{name}"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder in which the demo has run. Not to be changed: every process of the tests shares it, and the first to ask makes it."""
    with shared(tmp_path_factory, worker_id, "demo") as folder:
        if not (folder / TARGETS[1]).exists():
            run(folder, "--", *TARGETS)
    return folder
