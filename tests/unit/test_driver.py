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
