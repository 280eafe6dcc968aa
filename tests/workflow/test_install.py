"""The README's first commands in a copy of what a user has: an environment from the lock, and the demo in it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.workflow.conftest import ROOT, TARGETS

FILES = ("Makefile", "Snakefile", "requirements.lock", "pyproject.toml", "README.md", "config", "envs", "src", "workflow")


@pytest.mark.long
def test_make_demo_on_a_bare_machine(tmp_path):
    for name in FILES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "profiles").symlink_to("workflow/profiles")
    pip = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    bare = {"PATH": os.defpath + ":/usr/local/bin", "HOME": os.environ["HOME"], "LANG": "C.UTF-8", **pip}
    bare["PYTHON"] = sys.executable
    done = subprocess.run(["make", "demo"], cwd=tmp_path, env=bare, check=False, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "Done: results/demo/summary.tsv" in done.stdout
    assert all((tmp_path / target).exists() for target in TARGETS)
    assert len(pd.read_csv(tmp_path / TARGETS[0], sep="\t")) == 9
    shutil.rmtree(tmp_path / ".venv")  # five gigabytes


@pytest.mark.slow
def test_an_installation_that_was_killed_is_made_anew(tmp_path: Path) -> None:
    """Killed while pip is copied into the new environment, which is then there, and of no use; the lock here is empty."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    command = ["make", "install", f"PYTHON={sys.executable}", "VENV=.venv"]  # CI has another in its environment
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".venv/lib/python*/site-packages/pip/_vendor/rich/*.py")) and time.monotonic() < end:
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    python = tmp_path / ".venv/bin/python"
    assert python.exists()
    assert not (tmp_path / ".venv/bin/.installed").exists()
    stray = tmp_path / ".venv/lib/stray.py"
    stray.touch()
    second = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "An installation was cut short there: it begins anew." in second.stdout
    assert not stray.exists()
    subprocess.run([python, "-m", "pip", "check"], check=True, capture_output=True)
    third = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "Installing" not in third.stdout
    assert not (tmp_path / ".venv/.underway").exists()
