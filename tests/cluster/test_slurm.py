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
    "models=[survq]",
    "splits={folds: 3}",
    "training={epochs: 80, checkpoint_seconds: 0, folds_per_job: 3}",
    "--",
    "results/demo/summary.tsv",
)
SMALL = ["omics_matrix:mem_mb=150*attempt*attempt*attempt"]  # two Snakemakes alone need more: it is tried again with 1.2 GB
SMALL += [f"{rule}:mem_mb=1500*attempt" for rule in ("demo_slides", "tissue", "patches", "features", "train_fold")]
PATIENCE = 1200  # seconds, beside other tests on few cores


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
    """A function: the running job of survq when one of its folds has a checkpoint and the first is finished."""

    def find() -> str | None:
        model = folder / "results/demo/survq"
        if (model / "fold0/finished.yaml").exists() and list(model.glob("fold*/checkpoint.pt")):
            return next((job for job, facts in of_rule(lab.jobs("running"), "train_fold").items() if "survq" in facts["comment"]), None)
        return None

    return find


def fold_process(folder: Path) -> int | None:
    """A process in which a fold is trained: one of the job's script whose parent is one, too."""
    scripts = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes()
            script = words.split(b"\0")[1]
            if script.endswith(b"train_fold.py") and (place / "cwd").resolve() == folder.resolve():
                scripts[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    return next((pid for pid, parent in scripts.items() if parent in scripts), None)


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

        # a job of three folds is cancelled after the first: that one stays, the second keeps its state
        cancelled = first.until(training(lab, folder))
        finished = (folder / "results/demo/survq/fold0/finished.yaml").stat().st_mtime_ns
        lab("scancel", cancelled)
        first.until(lambda: cancelled not in lab.jobs("running"))

        # a node goes down under it
        job = first.until(training(lab, folder))
        node = lab.jobs()[job]["node"]
        lab("scontrol", "update", f"NodeName={node}", "State=down", "Reason=test")
        assert lab.jobs()[job]["state"] not in ("RUNNING", "COMPLETED")

        # the driver is killed; its jobs live on as orphans
        first.until(training(lab, folder))
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        orphans = lab.jobs("running", "pending")
        assert orphans

        # the process of a fold is killed as the kernel does it when memory lacks: the job fails alone and is tried again
        lab("scontrol", "update", f"NodeName={node}", "State=resume")
        second = Driver(lab, folder, tmp_path / "second.log")
        second.until(lambda: "SLURM jobs of a driver that was killed" in second.text())
        second.until(training(lab, folder))
        os.kill(second.until(lambda: fold_process(folder)), signal.SIGKILL)
        assert second.process.wait(PATIENCE) == 0, second.text()[-6000:]
        assert not lab.jobs("running", "pending")
        states = {job: lab.jobs()[job]["state"] for job in orphans}

    assert "CANCELLED" in states.values()
    assert (folder / "results/demo/survq/fold0/finished.yaml").stat().st_mtime_ns == finished
    assert "its process ended (SIGKILL: perhaps out of memory)" in second.text()
    assert "resumed after epoch" in (folder / "results/demo/logs/train_survq_0-2.log").read_text()
    for file in ("summary.tsv", *(f.relative_to(local / "results/demo") for f in (local / "results/demo").glob("*/fold*/predictions.tsv"))):
        assert (folder / "results/demo" / file).read_bytes() == (local / "results/demo" / file).read_bytes(), file


def test_the_lab_leaves_no_process_behind(tmp_path):
    with SlurmLab(tmp_path / "slurm", nodes=1) as lab:
        daemons = lab.daemons
        assert "n1" in lab("sinfo", "--noheader", "--format=%N")
    assert all(daemon.poll() is not None for daemon in daemons)
