"""A core is held by one process at a time, and is free again when that process ends, however it does."""

import multiprocessing
import os
import signal
import time

from pipeline.jobs import cores


def hold(folder, taken) -> None:
    handle = cores.take(folder)
    taken.send(handle is not None)
    signal.pause()


def test_no_more_cores_are_taken_than_there_are(tmp_path):
    cores.lay_out(2, tmp_path)
    first, second = cores.take(tmp_path), cores.take(tmp_path)
    assert first
    assert second
    assert cores.take(tmp_path) is None
    first.close()
    assert cores.take(tmp_path)


def test_a_killed_process_frees_its_core(tmp_path):
    cores.lay_out(1, tmp_path)
    context = multiprocessing.get_context("fork")
    hears, says = context.Pipe(duplex=False)
    holder = context.Process(target=hold, args=(tmp_path, says))
    holder.start()
    assert hears.recv()
    assert cores.take(tmp_path) is None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert cores.take(tmp_path)


def test_a_run_with_fewer_cores_takes_back_those_of_the_one_before(tmp_path):
    cores.lay_out(8, tmp_path)
    cores.lay_out(2, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1"]
    cores.lay_out(0, tmp_path)  # jobs run on other machines
    assert cores.take(tmp_path) is None


def test_a_job_runs_where_nothing_was_laid_out_or_nothing_is_free(tmp_path):
    assert cores.take(tmp_path / "nowhere") is None
    cores.lay_out(1, tmp_path)
    first, second = cores.Cores(folder=tmp_path, idle=0), cores.Cores(folder=tmp_path, idle=0)
    assert (first.spare(), second.spare()) == (None, None)
    del first
    assert second.spare() is None  # what is free now is its own, which it lacked
    assert cores.take(tmp_path) is None


def test_a_core_is_to_spare_only_when_it_has_been_free_for_a_while(tmp_path):
    """Between two jobs a core is free for a moment: it is the next job's."""
    cores.lay_out(2, tmp_path)
    job = cores.Cores(folder=tmp_path, idle=0.2)
    assert job.spare() is None
    time.sleep(0.1)
    other = cores.take(tmp_path)
    time.sleep(0.15)
    assert job.spare() is None
    other.close()
    assert job.spare() is None
    time.sleep(0.25)
    assert job.spare()


def test_a_job_of_several_threads_claims_as_many(tmp_path):
    cores.lay_out(5, tmp_path)
    job = cores.Cores(3, tmp_path, idle=0)
    spare = [job.spare() for _ in range(3)]
    assert [core is not None for core in spare] == [True, True, False]
