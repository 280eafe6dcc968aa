"""Running the real workflow in a folder of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def command(folder: Path, *arguments: str, cores: int = 2) -> list[str]:
    """The command line of a run in `folder`."""
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    profile = ["--workflow-profile", str(ROOT / "workflow/profiles/default")]
    return [*snakemake, *profile, "--cores", str(cores), *arguments]


def run(folder: Path, *arguments: str, cores: int = 2, fails: bool = False) -> str:
    """Run Snakemake in `folder`; returns everything it printed, after checking how it ended."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command(folder, *arguments, cores=cores), capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, text[-6000:]
    return text
