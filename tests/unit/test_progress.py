"""What a run says of itself, from Snakemake's events."""

import logging
import time

from pipeline import progress
from pipeline.progress import EVERY, Progress


class Run:
    """A clock, Snakemake's events and what was said of them."""

    def __init__(self, stages: dict[int, str]) -> None:
        self.now, self.said = 0.0, []
        self.progress = Progress(stages, self.said.append, clock=lambda: self.now)

    def __call__(self, event: str | None, **fields: object) -> None:
        record = logging.makeLogRecord({"event": event, **fields})
        self.progress.emit(record)

    def job(self, job: int, seconds: float) -> None:
        self("job_started", jobs=[job])
        self.now += seconds
        self("job_finished", job_id=job)


def test_a_line_when_a_stage_is_done_and_every_minute_between():
    run = Run({1: "tissue", 2: "tissue", 3: "train_fold", 4: "train_fold", 5: "train_fold", 6: "summary"})
    run.job(1, 10)
    assert run.said == []
    run.job(2, 20)
    assert run.said == ["2 of 6 jobs: tissue 2/2; 30 s"]
    run.job(3, EVERY + 90)
    assert run.said[-1] == "3 of 6 jobs: tissue 2/2, train_fold 1/3; 3.0 min, more than 5.0 min left"
    run.job(4, 150)
    run.job(5, 150)
    run.job(6, 1)
    assert run.progress.line() == "6 of 6 jobs: tissue 2/2, train_fold 3/3, summary 1/1; 8.0 min"


def test_jobs_side_by_side_shorten_what_is_left():
    run = Run({job: "tissue" for job in range(4)})
    run("job_started", jobs=[0, 1])
    run.now = 240.0
    run("job_finished", job_id=0)
    run("job_finished", job_id=1)
    assert run.progress.line() == "2 of 4 jobs: tissue 2/4; 4.0 min, about 4.0 min left"  # two at a time, two are left


def test_a_failure_counts_until_the_job_is_tried_again():
    run = Run({1: "tissue", 2: "tissue"})
    run("job_started", jobs=[1, 2])
    run("job_error", jobid=1, rule_name="tissue")
    run("job_finished", job_id=2)
    assert "; failed: tissue 1; " in run.progress.line()
    run("job_started", jobs=[1])
    assert run.progress.line() == "1 of 2 jobs: tissue 1/2; 1 running; tried again: tissue 1; 0 s"


def test_jobs_of_a_group_have_no_start_and_lines_without_an_event_are_not_meant():
    run = Run({1: "evaluate", 2: "evaluate"})
    run(None)
    run("job_started", jobs=["evaluations-1"])
    run("job_finished", job_id=1)
    run("job_finished", job_id=99)  # of a rerun that was not known at the beginning
    run.now = 5.0
    assert run.progress.line() == "1 of 2 jobs: evaluate 1/2; 5 s"


def test_a_line_every_minute_also_while_nothing_ends(monkeypatch):
    monkeypatch.setattr(progress, "LOOK", 0.005)
    run = Run({1: "tissue", 2: "tissue"})
    run("job_started", jobs=[1])
    run.progress.keep_saying(lambda begun: f"{len(begun)} running, 4 waiting (Priority 4)")
    time.sleep(0.05)
    assert run.said == []
    for minute in (1, 2):
        run.now = 60.0 * minute
        until = time.monotonic() + 10
        while len(run.said) < minute:
            assert time.monotonic() < until
            time.sleep(0.005)
    run.progress.close()
    assert run.said == [f"0 of 2 jobs; 1 running, 4 waiting (Priority 4); {minute}.0 min" for minute in (1, 2)]
