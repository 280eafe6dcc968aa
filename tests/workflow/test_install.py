"""The README's first commands in a copy of what a user has: an environment from the lock, and the demo in it."""

import os
import shutil
import subprocess
import sys

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
