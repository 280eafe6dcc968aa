"""One driver a folder: whose locks are removed, and whose are not."""

import fcntl
import logging

import pytest

from pipeline.driver import claim, end_orphans


@pytest.fixture
def folder(tmp_path):
    """A `.snakemake` with a lock that somebody left."""
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


def test_a_living_driver_keeps_its_lock(folder):
    with open(folder / "driver", "w") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        claim(folder, "login1").close()
    assert locks(folder) == 1


def test_a_driver_of_another_machine_may_live_although_nothing_tells(folder, caplog):
    (folder / "driver").write_text("login1")
    for _ in range(2):  # the first refusal does not make the second one ours
        with caplog.at_level(logging.WARNING):
            claim(folder, "login2").close()
        assert locks(folder) == 1
    assert "the folder was last used on login1; if no snakemake runs there any more: snakemake --unlock, and again" in caplog.text
    (folder / "locks/0.input.lock").unlink()  # what --unlock does
    claim(folder, "login2").close()
    assert (folder / "driver").read_text() == "login2"


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


def test_only_snakemakes_jobs_of_this_folder_are_orphans(tmp_path, monkeypatch):
    """The real thing, with a driver killed by -9, is in tests/cluster/test_slurm.py."""
    run = "f62abd3d-acdd-4ae3-9766-109329c68285"
    lines = [f"7|{run}|{tmp_path}", f"8|{run}|{tmp_path}/other", f"9|mine|{tmp_path}"]
    program(tmp_path, "squeue", f"test -e {tmp_path}/cancelled || printf '%s\\n' '" + "' '".join(lines) + "'")
    program(tmp_path, "scancel", f'echo "$@" > {tmp_path}/cancelled')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert end_orphans(tmp_path) == ["7"]
    assert (tmp_path / "cancelled").read_text() == "7\n"
