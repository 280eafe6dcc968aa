"""One driver a folder: who may work in it, whose locks are removed, and what becomes of the jobs of one that was killed."""

import fcntl
import logging
import os
import subprocess
import sys
import time

import pytest

from pipeline.driver import claim, end_local_orphans, end_orphans, is_at_work
from pipeline.errors import InputError
from pipeline.jobs.run import DRIVER, FOLDER, TOKEN, Owner


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A `.snakemake` with a lock that somebody left, on a machine without SLURM; what a run writes into the environment is undone."""
    for name in (FOLDER, TOKEN, DRIVER):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.input.lock").touch()
    return tmp_path / ".snakemake"


def locks(folder) -> int:
    return len(list((folder / "locks").iterdir()))


def test_the_lock_of_a_dead_driver_of_this_machine_is_removed(folder):
    claim(folder, "login1").close()
    assert locks(folder) == 0
    (folder / "locks/1.input.lock").touch()
    claim(folder, "login1").close()
    assert locks(folder) == 0


def test_a_driver_is_at_work_until_it_leaves(folder):
    assert not is_at_work(folder)
    driver = claim(folder, "login1")
    assert is_at_work(folder)
    driver.close()
    assert not is_at_work(folder)


def test_a_second_driver_begins_nothing_and_a_third_takes_no_lock_of_the_second(folder):
    first = claim(folder, "login1")
    first.begin()
    token = Owner.read(folder).token
    second = claim(folder, "login1")
    (folder / "locks/1.input.lock").touch()  # of whichever of them
    with pytest.raises(InputError, match=f"another snakemake works in this folder .process {os.getpid()} on login1.*then start again"):
        second.begin()
    assert (locks(folder), Owner.read(folder).token) == (1, token)
    first.close()
    second.close()
    third = claim(folder, "login1")
    third.begin()
    assert Owner.read(folder).token not in ("", token)
    third.close()


def test_a_driver_of_another_machine_may_live_although_nothing_tells(folder, caplog):
    (folder / "driver").write_text("login1")  # as versions before this one wrote it
    for _ in range(2):  # the first refusal does not make the second one ours
        with caplog.at_level(logging.WARNING):
            driver = claim(folder, "login2")
        with pytest.raises(InputError, match="the folder was last used on login1, where a snakemake may still work in it"):
            driver.begin()
        driver.close()
        assert locks(folder) == 1
    assert "If none runs there any more: snakemake --unlock, and again." in caplog.text
    (folder / "locks/0.input.lock").unlink()  # what --unlock does
    claim(folder, "login2").close()
    assert Owner.read(folder).host == "login2"


def test_a_folder_that_cannot_be_written_is_an_error_of_a_run_alone(tmp_path):
    (tmp_path / "file").touch()
    driver = claim(tmp_path / "file/.snakemake")
    with pytest.raises(InputError, match=r"\.snakemake: cannot be written; found 'Not a directory'"):
        driver.begin()


def test_jobs_of_a_killed_driver_that_do_not_end_are_waited_for_and_said(folder, caplog):
    (folder / "jobs").touch()
    with open(folder / "jobs") as job:
        fcntl.flock(job, fcntl.LOCK_SH)
        end_local_orphans(folder, seconds=0.1)
    assert "waiting for jobs of a driver that was killed: they stop and keep what they have done" in caplog.text
    assert "have not ended within 0.1 s; they will write nothing any more" in caplog.text
    caplog.clear()
    end_local_orphans(folder)
    assert not caplog.text


JOB = """
import sys, time
from pathlib import Path
from pipeline.files import write_text
from pipeline.logs import logged
folder = Path(sys.argv[1])
with logged(folder / "log"):
    try:
        write_text(folder / "begun", "")
        while True:
            time.sleep(0.01)
    finally:
        write_text(folder / "kept", "state")
"""
KILLED = """
import subprocess, sys, time
from pathlib import Path
from pipeline.driver import claim
driver = claim(Path(sys.argv[1]) / ".snakemake")
driver.begin()
subprocess.run(["sh", "-c", f"{sys.executable} -c '{sys.argv[2]}' {sys.argv[1]}; true"])
"""


def test_a_job_ends_with_its_driver_and_keeps_its_state_though_a_shell_lives_between(folder):
    """The driver is killed; a new one that comes at once waits for the job, and gives the folder another token only then."""
    environment = {**os.environ, "PATH": "/bin:/usr/bin"}
    place = folder.parent
    with subprocess.Popen([sys.executable, "-c", KILLED, str(place), JOB], env=environment, stderr=subprocess.DEVNULL) as killed:
        until = time.monotonic() + 30
        while not (place / "begun").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        token = Owner.read(folder).token
        killed.kill()
    driver = claim(folder)
    driver.begin()
    assert (place / "kept").read_text() == "state"
    assert "the snakemake that started this job has ended: it stops, too, and keeps what it has done" in (place / "log").read_text()
    assert Owner.read(folder).token not in ("", token)
    driver.close()


def test_without_slurm_there_are_no_orphans(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert end_orphans(tmp_path) == []


def program(folder, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_slurm_that_does_not_answer_is_told(tmp_path, monkeypatch, caplog):
    program(tmp_path, "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert end_orphans(tmp_path) == []
    assert caplog.text.count("squeue does not answer (Unable to contact slurm controller)") == 1


def test_only_snakemakes_jobs_of_this_folder_are_orphans_and_only_ones_own_are_cancelled(tmp_path, monkeypatch, caplog):
    """The real thing, with a driver killed by -9, is in tests/cluster/test_slurm.py."""
    run, me = "f62abd3d-acdd-4ae3-9766-109329c68285", f"{os.getuid()}|me"
    lines = [f"7|{run}|{me}|{tmp_path}", f"8|{run}|{me}|{tmp_path}/other", f"9|mine|{me}|{tmp_path}"]
    lines += [f"10|night_2_{run}|{me}|{tmp_path}", f"11|{run}|4711|anna|{tmp_path}"]  # --slurm-jobname-prefix night_2
    program(tmp_path, "squeue", f"test -e {tmp_path}/cancelled || printf '%s\\n' '" + "' '".join(lines) + "'")
    program(tmp_path, "scancel", f'echo "$@" > {tmp_path}/cancelled')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert end_orphans(tmp_path) == ["7", "10"]
    assert (tmp_path / "cancelled").read_text() == "7 10\n"
    assert "SLURM jobs of other users' runs in this folder are not cancelled, but will write nothing: 11 (anna)" in caplog.text
