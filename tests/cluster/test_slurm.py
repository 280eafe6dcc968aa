"""The demo on a real SLURM of two nodes (`slurm_lab`), with faults on the way: the same bytes as a local run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.slurm_lab import SlurmLab, missing
from tests.workflow.conftest import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=f"no SLURM here: {', '.join(missing())} not installed")]
DEMO = (
    "--config",
    "demo={patients: 24}",
    "slides={chunks: 2}",
    "models=[snn,survq]",
    "splits={folds: 3}",
    "training={epochs: 30, checkpoint_seconds: 0}",
    "--",
    "results/demo/summary.tsv",
)
SMALL = ["omics_matrix:mem_mb=150*attempt*attempt*attempt"]  # two Snakemakes alone need more: it is tried again with 1.2 GB
SMALL += [f"{rule}:mem_mb=1500*attempt" for rule in ("demo_slides", "tissue", "patches", "features", "train_fold", "predict_scenarios")]
PATIENCE = 1800  # seconds, beside other tests on few cores


class Driver:
    """A Snakemake on the cluster, as a user starts it; its output in a file."""

    def __init__(self, lab: SlurmLab, folder: Path, log: Path) -> None:
        self.log = log
        options = ["--jobs", "4", "--latency-wait", "20", "--slurm-init-seconds-before-status-checks", "3", "--set-resources", *SMALL]
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
        command += ["--workflow-profile", str(ROOT / "workflow/profiles/slurm"), *options, *DEMO]
        with open(log, "w") as output:
            self.process = subprocess.Popen(command, env=lab.environment, stdout=output, stderr=output, start_new_session=True)

    def text(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], object]) -> object:
        """What `condition` returns as soon as it is true, while the driver lives."""
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert self.process.poll() is None, self.text()[-6000:]
            assert time.monotonic() < end, self.text()[-6000:]
            time.sleep(0.2)
        return found


def of_rule(jobs: dict[str, dict[str, str]], rule: str) -> dict[str, dict[str, str]]:
    return {job: facts for job, facts in jobs.items() if facts["comment"].startswith(f"rule_{rule}_")}


def training(lab: SlurmLab, folder: Path) -> Callable[[], str | None]:
    """A function: a running job whose fold has a checkpoint, if there is one."""

    def find() -> str | None:
        for job, facts in of_rule(lab.jobs("running"), "train_fold").items():
            *_, model, fold = facts["comment"].split("_")
            if (folder / "results/demo" / model / f"fold{fold}" / "checkpoint.pt").exists():
                return job
        return None

    return find


def test_the_demo_with_faults_on_two_nodes_has_the_bytes_of_a_local_run(tmp_path):
    local, folder = tmp_path / "local", tmp_path / "cluster"
    run(local, *DEMO)
    with SlurmLab(tmp_path / "slurm", cpus=4, memory=8000) as lab:
        first = Driver(lab, folder, tmp_path / "first.log")

        # a job is killed for memory, and tried again with more
        assert first.until(lambda: list((folder / "results/demo/omics").glob("omics.h5")))
        attempts = of_rule(lab.jobs(), "omics_matrix")
        assert [facts["state"] for facts in attempts.values()][:1] != ["COMPLETED"]
        assert len(attempts) > 1

        # a job is cancelled while it trains: it keeps its state and goes on from it
        cancelled = first.until(training(lab, folder))
        lab("scancel", cancelled)

        # a node goes down under its jobs
        first.until(lambda: of_rule(lab.jobs("running"), "train_fold"))
        job, facts = first.until(lambda: next(iter(of_rule(lab.jobs("running"), "train_fold").items()), None))
        lab("scontrol", "update", f"NodeName={facts['node']}", "State=down", "Reason=test")
        assert lab.jobs()[job]["state"] not in ("RUNNING", "COMPLETED")

        # the driver is killed; its jobs live on as orphans
        first.until(training(lab, folder))
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        orphans = lab.jobs("running", "pending")
        assert orphans

        lab("scontrol", "update", f"NodeName={facts['node']}", "State=resume")
        second = Driver(lab, folder, tmp_path / "second.log")
        second.until(lambda: "SLURM jobs of a driver that was killed" in second.text())
        assert second.process.wait(PATIENCE) == 0, second.text()[-6000:]
        assert not lab.jobs("running", "pending")
        states = {job: lab.jobs()[job]["state"] for job in orphans}
        nodes = {facts["node"] for facts in lab.jobs("completed").values()}

    assert "CANCELLED" in states.values()
    assert nodes >= {"n1", "n2"}
    logs = [log.read_text() for log in (folder / "results/demo/logs").glob("train_*.log")]
    assert any("resumed after epoch" in log for log in logs)
    for file in ("summary.tsv", *(f.relative_to(local / "results/demo") for f in (local / "results/demo").glob("*/fold*/predictions.tsv"))):
        assert (folder / "results/demo" / file).read_bytes() == (local / "results/demo" / file).read_bytes(), file


def test_the_lab_leaves_no_process_behind(tmp_path):
    with SlurmLab(tmp_path / "slurm", nodes=1) as lab:
        daemons = lab.daemons
        assert "n1" in lab("sinfo", "--noheader", "--format=%N")
    assert all(daemon.poll() is not None for daemon in daemons)
