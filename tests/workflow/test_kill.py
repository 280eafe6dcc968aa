"""kill -9 at every stage and at random moments, each followed by the same command, ends in the bytes of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.jobs.run import Owner
from tests.workflow.conftest import command, run

SETTINGS = ("demo={patients: 24}", "models=[snn,survq]", "splits={folds: 2}", "training={epochs: 8, checkpoint_seconds: 0}")
SMALL = ("--config", *SETTINGS, "--", "results/demo/summary.tsv", "results/demo/report.html")
STAGES = {  # a file that is there when a job of the stage is at work; its driver alone is killed, or all its processes with it
    "demo_slides": "logs/demo_slides_*.log",
    "tissue": "logs/tissue_*.log",
    "features": "logs/features_*.log",
    "training": "survq/fold*/checkpoint.pt",
    "evaluation": "logs/evaluate_*.log",
    "report": "logs/report_page.log",
}
KILLS = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """What an undisturbed run makes, and how long it takes."""
    folder, start = tmp_path_factory.mktemp("whole"), time.monotonic()
    run(folder, *SMALL, cores=1)
    found = products(folder)
    assert len(found) == 7  # two models and the reference, two folds each, and the summary
    return found, time.monotonic() - start


def products(folder: Path) -> dict[str, bytes]:
    """Every prediction and the summary, by path."""
    files = [*(folder / "results/demo").glob("*/fold*/predictions.tsv"), folder / "results/demo/summary.tsv"]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def start(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(command(folder, *SMALL), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def kill(driver: subprocess.Popen, everything: bool) -> None:
    """Kill the workflow; `everything` takes its jobs with it, else they live on as orphans."""
    (os.killpg if everything else os.kill)(driver.pid, signal.SIGKILL)
    driver.wait()


@pytest.mark.slow
def test_a_kill_at_every_stage_changes_no_byte(tmp_path, whole):
    """One folder, killed in every stage in turn: the driver alone, then all of its processes, and so on."""
    for number, (stage, pattern) in enumerate(STAGES.items()):
        for log in (tmp_path / "results/demo").glob(pattern):
            log.unlink()
        with start(tmp_path) as driver:
            while not list((tmp_path / "results/demo").glob(pattern)):
                assert driver.poll() is None, f"{stage} did not begin"
                time.sleep(0.02)
            kill(driver, everything=number % 2 == 1)
    run(tmp_path, *SMALL)
    assert products(tmp_path) == whole[0]


@pytest.mark.long
def test_ten_kills_at_random_moments_change_no_byte(tmp_path, whole):
    found, duration = whole
    moments, killed = random.Random(1), 0
    while killed < KILLS:
        with start(tmp_path) as driver:
            try:
                driver.wait(moments.uniform(3, max(6, duration / 10)))
            except subprocess.TimeoutExpired:
                kill(driver, everything=killed % 2 == 0)
                killed += 1
                continue
        assert products(tmp_path) == found  # it came to its end: begin anew for the kills that are left
        shutil.rmtree(tmp_path / "results")
    run(tmp_path, *SMALL)
    assert products(tmp_path) == found


def trained(folder: Path) -> list[Path]:
    """The processes that train in `folder`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if b"train_fold.py" in (place / "cmdline").read_bytes() and (place / "cwd").resolve() == folder.resolve():
                found.append(place)
        except OSError:
            continue
    return found


@pytest.mark.long
def test_jobs_of_a_killed_driver_cannot_overwrite_the_results_of_the_next(tmp_path):
    """The driver is killed while folds train for hours, and the same is asked for with one epoch."""
    target, setting = ("--", "results/demo/summary.tsv"), "training={epochs: %d, checkpoint_seconds: 0}"
    few = ("--config", "demo={patients: 24}", "models=[survq]", "splits={folds: 2}", setting % 1, *target)
    many = tuple(word if word != setting % 1 else setting % 100_000 for word in few)
    run(tmp_path / "undisturbed", *few)
    with subprocess.Popen(command(tmp_path / "killed", *many), stderr=subprocess.DEVNULL, start_new_session=True) as driver:
        while not list((tmp_path / "killed/results/demo").glob("survq/fold*/checkpoint.pt")):
            assert driver.poll() is None
            time.sleep(0.1)
        kill(driver, everything=False)
    assert trained(tmp_path / "killed")
    run(tmp_path / "killed", *few)
    assert not trained(tmp_path / "killed")
    files = [*(tmp_path / "undisturbed/results/demo").glob("*/fold*/*.tsv"), tmp_path / "undisturbed/results/demo/summary.tsv"]
    for file in files:
        assert (tmp_path / "killed" / file.relative_to(tmp_path / "undisturbed")).read_bytes() == file.read_bytes(), file
    assert "Nothing to be done" in run(tmp_path / "killed", *few)


@pytest.mark.slow
def test_a_second_driver_on_the_same_folder_is_refused(tmp_path):
    with subprocess.Popen(command(tmp_path, *SMALL), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as first:
        try:
            while not list((tmp_path / "results/demo").glob("logs/*")):
                assert first.poll() is None
                time.sleep(0.1)
            token, locks = Owner.read(tmp_path / ".snakemake").token, len(list((tmp_path / ".snakemake/locks").glob("*")))
            refused = run(tmp_path, "--nolock", *SMALL, fails=True)  # Snakemake's own locks are of files: other targets would pass them
            assert f"another snakemake works in this folder (process {first.pid} on" in refused
            assert Owner.read(tmp_path / ".snakemake").token == token
            assert len(list((tmp_path / ".snakemake/locks").glob("*"))) == locks > 0
            assert first.poll() is None
        finally:
            os.killpg(first.pid, signal.SIGKILL)
