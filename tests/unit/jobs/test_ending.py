"""What a run says at its end, from Snakemake's events."""

import logging
import signal

import pytest

from pipeline.jobs import slurm
from pipeline.jobs.cluster import Cluster
from pipeline.jobs.ending import Ending, notify
from pipeline.progress import Progress

NEXT = "snakemake --cores 2 -- results/demo/summary.tsv"
ERROR = {"rule_msg": None, "log": [], "aux": {}, "input": [], "shellcmd": None}


def event(name: str, **fields: object) -> logging.LogRecord:
    return logging.makeLogRecord({"event": name, **fields})


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster whose handlers of signals are undone; Ctrl-C is heeded, also where a shell runs the tests in the background."""
    monkeypatch.setenv("PATH", "/bin")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Cluster(tmp_path / "slurm", print)
    for number, handler in before.items():
        signal.signal(number, handler)


def ended(cluster: Cluster | None, *events: logging.LogRecord, jobs: int = 370) -> list[str]:
    """The lines of a run with these events."""
    progress = Progress({job: "features" for job in range(jobs)}, print)
    ending = Ending(progress, print, cluster)
    for record in events:
        progress.handle(record)
        ending.handle(record)
    return ending.failed(NEXT).splitlines()


def failure(job: int, **fields: object) -> logging.LogRecord:
    return event("job_error", **{**ERROR, "jobid": job, "rule_name": "features", "output": [f"features/chunk{job}"], **fields})


def test_the_end_names_what_failed_why_where_and_what_is_next(cluster, tmp_path):
    log = tmp_path / "features_3.log"
    log.write_text("12:00:00 INFO begun\n12:00:01 ERROR disk full: free some space\nsnakemake says much more\n")
    says = "SLURM-job '4711' failed, SLURM status is: 'TIMEOUT'. Detailed failure reason unavailable (status command is not 'sacct')."
    lines = ended(
        cluster,
        *(event("job_finished", job_id=job) for job in range(10, 370)),
        failure(3, log=[str(log), "absent.log"]),
        failure(4, rule_msg=says, aux={"external_jobid": "4711"}),
        failure(5, rule_msg=says, aux={"external_jobid": "4712"}),
        failure(6),
        event("job_started", jobs=[6]),  # tried again, with success
        event("job_finished", job_id=6),
    )
    assert lines == [
        "The run has ended: 361 of 370 jobs: features 361/370; failed: features 3; tried again: features 1; 0 s",
        "failed: features, 2 jobs (features/chunk4, features/chunk5); SLURM says TIMEOUT: it needs more runtime",
        "    no log was written",
        "failed: features, 1 job (features/chunk3)",
        f"    {log}: disk full: free some space",
        "What is finished is kept. Next, when the cause is gone:",
        f"    {NEXT}",
    ]


def test_the_state_of_a_groups_job_is_what_slurm_told(cluster, tmp_path):
    (tmp_path / "slurm/states.json").write_text('{"12": "OUT_OF_MEMORY"}')
    group = event("group_error", aux_logs=["slurm.log"], external_jobid="12", job_error_info=[{"jobid": 1}])
    line = ended(cluster, group, failure(1))[1]
    assert line == "failed: features, 1 job (features/chunk1); SLURM says OUT_OF_MEMORY: it needs more mem_mb"


def test_many_kinds_of_failures_fit_on_a_screen(tmp_path):
    for job in range(40):
        (tmp_path / f"{job}.log").write_text(f"12:00:01 ERROR slide {job}: {'x' * 400}\n")
    lines = ended(None, *(failure(job, log=[str(tmp_path / f"{job}.log")]) for job in range(40)))
    assert len(lines) == 14
    assert max(map(len, lines)) == 300
    assert "and 35 other failures: see the complete log" in lines


def test_a_refusal_is_said_once_and_nothing_more_is_submitted(tmp_path, monkeypatch, cluster):
    said, ends = [], []
    cluster._say = said.append
    cluster._handlers[signal.SIGTERM] = lambda *_: ends.append(1)
    (tmp_path / "slurm/refused").write_text("invalid partition specified: gpuu")
    refused = "SLURM sbatch failed. The error message was 'invalid partition specified: gpuu'.\n    sbatch call:\n"
    records = [failure(job, rule_msg=refused) for job in range(3)]
    records += [event("group_error", aux_logs=[], job_error_info=[{"jobid": 7}]), failure(7)]
    records += [event("", msg=f"Trying to restart job {job}.") for job in (1, 2)]
    shown = [record for record in records for _ in range(2) if cluster.filter(record)]  # two handlers
    assert [record.getMessage() for record in shown] == ["Trying to restart job 1."] * 2
    lines = ended(cluster, *records)
    assert said == ["No more jobs are submitted: invalid partition specified: gpuu. Running ones are finished first; Ctrl-C cancels them."]
    assert ends == [1]
    outputs = "features/chunk0, features/chunk1, features/chunk2, …"
    assert lines[1] == f"failed: features, 4 jobs ({outputs}); not submitted: invalid partition specified: gpuu"


def test_a_run_that_waits_for_jobs_which_slurm_does_not_have_ends(cluster, monkeypatch):
    """Whatever the plugin has forgotten."""
    ends, now, said = [], [0.0], [slurm.NOTHING]
    cluster._remote, cluster._fail = {1, 2}, ends.append
    monkeypatch.setattr("pipeline.jobs.cluster.time.monotonic", lambda: now[0])
    monkeypatch.setattr(slurm, "doing", lambda folder: said[0])
    for seconds, listed, begun in [
        (1, slurm.NOTHING, [1, 3]),
        (901, "1 running, 0 waiting", [1]),
        (902, slurm.NOTHING, [3]),  # runs beside the driver
        (1000, slurm.NOTHING, [1]),
        (1900, slurm.NOTHING, [1]),
    ]:
        now[0], said[0] = seconds, listed
        assert cluster.doing(begun) == listed
        assert ends == []
    now[0] = 1901
    cluster.doing([1])
    (error,) = ends
    assert str(error).startswith("Snakemake waits for jobs (1), and SLURM has had none of this run for 15.0 min: the run ends.")


def test_other_failures_are_shown(cluster):
    assert cluster.filter(failure(1))
    assert cluster.filter(event("", msg="Trying to restart job 1."))


def test_ctrl_c_lets_submissions_give_up(cluster, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert (tmp_path / "slurm/stopped").exists()
    assert slurm.refusal(tmp_path / "slurm") is None


def test_the_users_command_gets_what_was_said(tmp_path, caplog):
    notify(f"cat > {tmp_path}/mail; echo $SLIDE2SURV_ENDED >> {tmp_path}/mail", "The run is done", "done")
    assert (tmp_path / "mail").read_text() == "The run is done\ndone\n"
    notify("echo no such address >&2; exit 3", "", "failed")
    assert "ended with status 3: no such address" in caplog.text
    notify("", "", "done")
