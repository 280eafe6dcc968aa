"""The run of a job: what another one superseded replaces no file."""

import os
import signal
import subprocess
import sys

import pytest

from pipeline import files
from pipeline.jobs import run
from pipeline.jobs.run import DRIVER, FOLDER, TOKEN, Owner, SupersededError


@pytest.fixture
def snakemake(tmp_path, monkeypatch):
    """A `.snakemake` whose run is "old", to which this process belongs as a job on a cluster."""
    write(tmp_path, "old")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv(TOKEN, "old")
    monkeypatch.delenv(DRIVER, raising=False)
    return tmp_path


def write(folder, token: str) -> None:
    with open(folder / run.FILE, "wb") as handle:
        Owner("login1", "4711", token).write(handle)


def test_a_superseded_job_replaces_no_file_and_says_why(snakemake):
    target = snakemake / "a.txt"
    files.write_text(target, "old")
    write(snakemake, "new")
    with pytest.raises(SupersededError, match=r"this job .* another one has superseded \(.*, on login1\): it writes nothing"):
        files.write_text(target, "newer than the new run's")
    assert target.read_text() == "old"
    assert sorted(path.name for path in snakemake.iterdir()) == ["a.txt", run.FILE]


@pytest.mark.parametrize("state", ["same run", "by hand", "folder removed", "file of an older version"])
def test_others_write_as_ever(snakemake, monkeypatch, state):
    if state == "by hand":
        monkeypatch.delenv(TOKEN)
        write(snakemake, "new")
    elif state == "folder removed":
        (snakemake / run.FILE).unlink()
    elif state == "file of an older version":
        (snakemake / run.FILE).write_text("login1")
    files.write_text(snakemake / "a.txt", "text")
    assert (snakemake / "a.txt").read_text() == "text"


def test_the_file_is_always_as_long_so_that_nobody_reads_half_of_it(snakemake):
    sizes = {(write(snakemake, token), (snakemake / run.FILE).stat().st_size)[1] for token in ("", "x" * 32)}
    assert sizes == {run.LENGTH}
    assert Owner.read(snakemake) == Owner("login1", "4711", "x" * 32)


WAITING = """
import sys, time
from pathlib import Path
from pipeline.jobs import run
from pipeline.logs import logged
run.FAR = 0.05
with logged(Path(sys.argv[1]) / "log"):
    (Path(sys.argv[1]) / "begun").touch()
    time.sleep(60)
"""


def test_a_job_on_a_cluster_outlives_its_driver_and_ends_when_its_run_is_superseded(snakemake):
    with subprocess.Popen([sys.executable, "-c", WAITING, str(snakemake)], stderr=subprocess.DEVNULL, env=os.environ) as job:
        while not (snakemake / "begun").exists():
            assert job.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(0.3)
        write(snakemake, "new")
        assert job.wait(10) == 128 + signal.SIGTERM
    assert "WARNING this job belongs to a run that another one has superseded" in (snakemake / "log").read_text()
