"""SLURM's bad nights on a real one of two nodes: the run goes on by itself, or ends at once with the line that matters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm_lab import SlurmLab, missing
from tests.workflow.conftest import ROOT, run

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(missing()), reason=f"no SLURM here: {', '.join(missing())} not installed")]
STUDY = ("demo={patients: 24}", "slides={chunks: 1}", "models=[snn]", "splits={folds: 2}")
FEW, MANY = "training={epochs: 1, checkpoint_seconds: 0}", "training={epochs: 100000, checkpoint_seconds: 0}"
TARGET = "results/demo/summary.tsv"
PATIENCE = 1200  # seconds


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[SlurmLab]:
    with SlurmLab(tmp_path_factory.mktemp("slurm"), cpus=4, memory=40000) as lab:
        yield lab


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The folder of a local run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, "--config", *STUDY, FEW, "--", TARGET)
    return folder


class Night:
    """A driver on the cluster, its output in a file; `programs`: a folder of programs that come before SLURM's."""

    def __init__(self, lab: SlurmLab, folder: Path, *options: str, training: str = FEW, programs: Path | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self._log = folder, folder.with_suffix(f".{time.monotonic_ns()}.log")
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
        command += ["--workflow-profile", str(ROOT / "workflow/profiles/slurm"), "--latency-wait", "20"]
        command += ["--slurm-init-seconds-before-status-checks", "3", *options, "--config", *STUDY, training, "--", TARGET]
        path = os.pathsep.join([*([str(programs)] if programs else []), lab.environment["PATH"]])
        with open(self._log, "w") as output:
            environment = {**lab.environment, "PATH": path, "SLIDE2SURV_FORGOTTEN": "5"}
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)

    def text(self) -> str:
        return self._log.read_text()

    def until(self, condition) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.text()[-6000:]
            assert time.monotonic() < end, self.text()[-6000:]
            time.sleep(0.2)

    def ends(self, status: int = 0) -> list[str]:
        """The lines that it said, after checking how it ended."""
        assert self.process.wait(PATIENCE) == status, self.text()[-6000:]
        return self.text().splitlines()


def same(folder: Path, undisturbed: Path) -> bool:
    files = [*undisturbed.glob("results/demo/*/fold*/*.tsv"), undisturbed / TARGET]
    return len(files) > 4 and all((folder / file.relative_to(undisturbed)).read_bytes() == file.read_bytes() for file in files)


def before(folder: Path, lab: SlurmLab, name: str, text: str) -> Path:
    """A folder with a program `name` that may call the real one as ``$real``."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\nreal={lab.folder}/bin/{name}\n{text}\n")
    (folder / name).chmod(0o755)
    return folder


def test_a_controller_that_is_away_a_full_queue_and_a_lost_job_only_cost_time(lab, tmp_path, undisturbed):
    full = f'if [ ! -e {tmp_path}/free ] && [ -e {tmp_path}/seen ]; then echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1; fi'
    programs = before(tmp_path / "programs", lab, "sbatch", f'{full}\ntouch {tmp_path}/seen\nexec $real "$@"')
    # one job is hidden from the first queries: as if SLURM had lost it
    (tmp_path / "lost").write_text("none")
    before(programs, lab, "squeue", f'listed=$($real "$@") || exit 1; echo "$listed" | grep -v "^$(cat {tmp_path}/lost)[|]"; true')
    night = Night(lab, tmp_path / "night", programs=programs)
    submitted = night.folder / ".snakemake/slurm/submitted.tsv"
    night.until(submitted.exists)
    (tmp_path / "lost").write_text(submitted.read_text().split()[1])
    night.until((night.folder / ".snakemake/slurm/waiting").exists)
    assert "AssocMaxSubmitJobLimit" in (night.folder / ".snakemake/slurm/waiting").read_text()
    (tmp_path / "free").touch()
    night.until(lambda: "SLURM status is: 'ERROR'" in night.text())
    (tmp_path / "lost").write_text("none")
    night.until(lambda: lab.jobs("running"))
    with lab.away():
        night.until((night.folder / ".snakemake/slurm/silent").exists)
        time.sleep(30)
    night.ends()
    assert same(night.folder, undisturbed)


def test_a_misspelt_partition_is_said_once_and_ends_the_run(lab, tmp_path):
    night = Night(lab, tmp_path / "night", "--default-resources", "slurm_partition=gpuu", "mem_mb=1000")
    lines = night.ends(1)
    refused = "invalid partition specified: gpuu; Invalid partition name specified"
    assert [line for line in lines if "No more jobs are submitted" in line] == [
        f"No more jobs are submitted: {refused}. Running ones are finished first; Ctrl-C cancels them."
    ]
    assert "sbatch call" not in night.text()
    end = "\n".join(lines[-20:])
    assert f"not submitted: {refused}" in end
    assert "What is finished is kept. Next, when the cause is gone:\n    snakemake --snakefile" in end
    assert not lab.jobs("running", "pending")


def test_an_orphan_on_the_cluster_replaces_no_file_of_the_next_run(lab, tmp_path, undisturbed):
    """The next driver cannot cancel it: it runs on a machine without SLURM's programs."""
    night = Night(lab, tmp_path / "night", training=MANY)
    night.until(lambda: list(night.folder.glob("results/demo/snn/fold*/checkpoint.pt")))
    os.kill(night.process.pid, signal.SIGKILL)
    night.process.wait()
    assert lab.jobs("running")
    run(night.folder, "--config", *STUDY, FEW, "--", TARGET)
    end = time.monotonic() + 120
    while lab.jobs("running", "pending", "completing"):
        assert time.monotonic() < end
        time.sleep(0.5)
    assert same(night.folder, undisturbed)
    assert "Nothing to be done" in run(night.folder, "--config", *STUDY, FEW, "--", TARGET)


def test_a_second_driver_leaves_the_jobs_of_the_first_alone(lab, tmp_path):
    first = Night(lab, tmp_path / "night", training=MANY)
    first.until(lambda: lab.jobs("running"))
    jobs = set(lab.jobs("running", "pending"))
    second = Night(lab, tmp_path / "night", "--nolock", training=MANY)
    assert "another snakemake works in this folder" in "\n".join(second.ends(1))
    assert not [job for job, facts in lab.jobs().items() if job in jobs and facts["state"] == "CANCELLED"]
    os.kill(first.process.pid, signal.SIGINT)
    first.ends(1)
    assert not jobs & set(lab.jobs("running", "pending"))
