"""How far a run is, in a line that a person can read: done of all jobs a stage, what runs and waits, failures, time left."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from pipeline.amounts import duration

EVERY = 60.0  # seconds between two lines, and one whenever a stage is done
LOOK = 1.0  # seconds between two looks at the clock


class Progress(logging.Handler):
    """Hears Snakemake's events and says, through `say`, how far the run is.

    stages: job id → stage, of all jobs of the run in the order in which stages should be named. clock: seconds.
    """

    def __init__(self, stages: Mapping[int, str], say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._stages, self._say, self._clock = dict(stages), say, clock
        self._total, self._done = Counter(self._stages.values()), Counter()
        self._started: dict[int, float] = {}
        self._seconds: Counter[str] = Counter()  # of the done jobs whose start was told (jobs of a group are not)
        self._timed: Counter[str] = Counter()
        self._failed: dict[int, str] = {}
        self._again: Counter[str] = Counter()
        self._begin = self._last = clock()
        self._over = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        event = str(getattr(record, "event", "") or "")
        if event == "job_started":
            for job in self._stages.keys() & set(record.jobs):  # a group is told of as one job
                self._started[job] = self._clock()
                if stage := self._failed.pop(job, None):
                    self._again[stage] += 1
        elif event == "job_error":
            self._failed[record.jobid] = self._stages.get(record.jobid, record.rule_name)
            self._started.pop(record.jobid, None)
        elif event == "job_finished" and record.job_id in self._stages:
            self._finish(record.job_id)

    def _finish(self, job: int) -> None:
        stage, now = self._stages[job], self._clock()
        self._done[stage] += 1
        self._failed.pop(job, None)
        if job in self._started:
            self._seconds[stage] += now - self._started.pop(job)
            self._timed[stage] += 1
        if self._done[stage] == self._total[stage] > 1 or now - self._last >= EVERY:
            self._last = now
            self._say(self.line())

    def keep_saying(self, doing: Callable[[list[int]], str] = lambda _: "") -> None:
        """From now on say every minute how far the run is, also while nothing ends, with what `doing` knows of the jobs that have begun."""
        threading.Thread(target=self._keep_saying, args=(doing,), daemon=True).start()

    def _keep_saying(self, doing: Callable[[list[int]], str]) -> None:
        while not self._over.wait(LOOK):
            if self._clock() - self._last >= EVERY:
                now = doing(list(self._started))
                with self.lock:
                    self._last = self._clock()
                    line = self.line(now)
                self._say(line)

    def close(self) -> None:
        """Say nothing more."""
        self._over.set()
        super().close()

    def line(self, doing: str = "") -> str:
        """``12 of 61 jobs: tissue 4/4, train_fold 8/45; failed: train_fold 1; 3.0 min, about 12.0 min left``; only stages that began.

        doing: what the jobs do that have begun and are not done; else their number is said, where there are any.
        """
        begun = [f"{stage} {self._done[stage]}/{total}" for stage, total in self._total.items() if self._done[stage]]
        parts = [": ".join([f"{self._done.total()} of {self._total.total()} jobs", *([", ".join(begun)] if begun else [])])]
        parts += [doing or f"{len(self._started)} running"] if doing or self._started else []
        parts += [f"failed: {_counted(Counter(self._failed.values()))}"] if self._failed else []
        parts += [f"tried again: {_counted(self._again)}"] if self._again else []
        spent = self._clock() - self._begin
        return "; ".join([*parts, f"{duration(spent)}{self._left(spent)}"])

    def _left(self, spent: float) -> str:
        """What is left: of each stage its mean so far for every job that is left, at as many jobs at a time as there were until now."""
        busy = self._seconds.total() / spent if spent else 0.0
        left, unknown = 0.0, False
        for stage, total in self._total.items():
            jobs = total - self._done[stage]
            unknown |= jobs > 0 and not self._timed[stage]
            left += jobs * self._seconds[stage] / max(1, self._timed[stage])
        return f", {'more than' if unknown else 'about'} {duration(left / max(1.0, busy))} left" if left >= 1 else ""


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{stage} {count}" for stage, count in sorted(counts.items()))
