"""kill -9 at random moments, each followed by the same command, ends in the bytes of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.workflow.conftest import command, run

pytestmark = pytest.mark.slow
SETTINGS = ("demo={patients: 24}", "models=[snn,survq]", "splits={folds: 2}", "training={epochs: 8}")
SMALL = ("--config", *SETTINGS, "--", "results/demo/summary.tsv")
KILLS = 10


def products(folder: Path) -> dict[str, bytes]:
    """Every prediction and the summary, by path."""
    files = [*(folder / "results/demo").glob("*/fold*/predictions.tsv"), folder / "results/demo/summary.tsv"]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def killed_after(folder: Path, seconds: float, everything: bool) -> bool:
    """Start the workflow and kill it; `everything` takes its jobs with it, else they live on as orphans. False: it had ended."""
    with subprocess.Popen(command(folder, *SMALL), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as driver:
        try:
            driver.wait(seconds)
        except subprocess.TimeoutExpired:
            (os.killpg if everything else os.kill)(driver.pid, signal.SIGKILL)
            return True
    return False


def test_ten_kills_change_no_byte(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start = time.monotonic()
    run(whole, *SMALL, cores=1)
    duration = time.monotonic() - start
    cut.mkdir()
    moments = random.Random(1)
    killed = 0
    while killed < KILLS:
        if killed_after(cut, moments.uniform(3, max(6, duration / 10)), everything=killed % 2 == 0):
            killed += 1
        else:  # it came to its end: compare, and begin anew for the kills that are left
            assert products(cut) == products(whole)
            shutil.rmtree(cut / "results")
    run(cut, *SMALL)
    assert len(products(whole)) == 7  # two models and the reference, two folds each, and the summary
    assert products(cut) == products(whole)


def test_a_second_driver_on_the_same_folder_is_refused(tmp_path):
    with subprocess.Popen(command(tmp_path, *SMALL), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as first:
        try:
            while not list((tmp_path / ".snakemake" / "locks").glob("*")):
                assert first.poll() is None
                time.sleep(0.1)
            assert "lock" in run(tmp_path, *SMALL, fails=True).lower()
        finally:
            os.killpg(first.pid, signal.SIGKILL)
