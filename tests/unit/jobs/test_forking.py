"""Tasks in forked processes: how many at a time, what a death costs, and that none outlives the job."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pipeline.jobs import cores
from pipeline.jobs.cores import Cores
from pipeline.jobs.forking import run_forked
from pipeline.stopping import STATUS, deferred, end_on_sigterm


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The cores of the run are laid out below the folder in which the workflow runs."""
    monkeypatch.chdir(tmp_path)


def note(name: str, text: str = "") -> None:
    Path(name).write_text(text)


def together(tasks: int, workers: int) -> int:
    """How many of `tasks` were under way at a time."""

    def work(task: int) -> None:
        note(f"begin{task}", str(time.monotonic()))
        time.sleep(0.4)
        note(f"end{task}", str(time.monotonic()))

    assert run_forked(range(tasks), work, Cores(workers, idle=0)) == {}
    spans = [(float(Path(f"begin{t}").read_text()), float(Path(f"end{t}").read_text())) for t in range(tasks)]
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)


def test_one_at_a_time_where_no_core_idles_and_in_order():
    assert together(3, workers=1) == 1
    begins = [Path(f"begin{task}").read_text() for task in range(3)]
    assert begins == sorted(begins)


def test_idle_cores_are_used_and_given_back():
    cores.lay_out(3)
    assert together(4, workers=1) == 3
    taken = [cores.take() for _ in range(4)]
    assert [handle is not None for handle in taken] == [True] * 3 + [False]


def test_as_many_as_the_job_has_threads():
    assert together(4, workers=2) == 2


def test_a_death_and_an_error_cost_no_other_task(caplog):
    def work(task: str) -> None:
        if task == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "wrong":
            raise ZeroDivisionError("planted")
        note(task)

    ended = run_forked(["a", "killed", "wrong", "b"], work, Cores())
    assert ended == {"killed": "SIGKILL: perhaps out of memory", "wrong": "exit status 1"}
    assert Path("a").exists()
    assert Path("b").exists()


def job(kind: str) -> None:
    """A job of two tasks that wait until they are told to stop, and then keep what they have."""
    end_on_sigterm()

    def work(task: str) -> None:
        note(f"{task}.pid", str(os.getpid()))
        with deferred() as asked:
            while not asked():
                time.sleep(0.02)
            note(f"{task}.kept")
            sys.exit(STATUS)

    run_forked(["a", "b"], work, Cores(2))


@pytest.fixture
def running():
    """A job under way, with its two tasks."""
    process = multiprocessing.get_context("fork").Process(target=job, args=("",))
    process.start()
    until = time.monotonic() + 20
    while not (Path("a.pid").exists() and Path("b.pid").exists() and Path("b.pid").read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    yield process
    process.kill()
    process.join()


def test_told_to_stop_it_tells_its_tasks_which_keep_what_they_have(running):
    running.terminate()
    running.join()
    assert running.exitcode == STATUS
    assert Path("a.kept").exists()
    assert Path("b.kept").exists()


def test_no_task_outlives_a_killed_job(running):
    pids = [int(Path(f"{task}.pid").read_text()) for task in "ab"]
    running.kill()
    running.join()
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not Path("a.kept").exists()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
