"""The driver's side of `jobs.slurm`: it stops once and says once when SLURM refuses jobs for good, and tells what the jobs do."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType

from pipeline.amounts import duration
from pipeline.jobs import slurm

NOT_SUBMITTED = "SLURM sbatch failed"  # as the plugin's message begins, for whatever reason
STALLED = 900.0  # seconds; the plugin asks for its jobs every three minutes at least, and hears of lost ones after five
REPEATED = ("Will exit after finishing", "Trying to restart job")  # Snakemake says it of every job, also while it ends


class Cluster(logging.Filter):
    """A run whose jobs go to SLURM.

    folder: ``.snakemake/slurm``; say: how errors are said; remote: the jobs that do not run beside the driver; fail: ends Snakemake with
    a message. As a filter of the handlers of Snakemake's log it takes out what is said again for each job that was not submitted.
    """

    def __init__(
        self, folder: Path, say: Callable[[str], None], remote: Iterable[int] = (), fail: Callable[[str], None] | None = None
    ) -> None:
        super().__init__()
        self.folder, self._say, self._remote, self._fail = folder, say, set(remote), fail
        self._nothing_since: float | None = None
        self._said: set[str] = set()
        self._in_groups: dict[object, str] = {}  # jobs of groups that were not submitted, and why
        slurm.lay_out(folder)
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in self._handlers.items():
            if callable(handler):  # not ignored, as Ctrl-C is by what runs in the background
                signal.signal(number, self._stop)

    def doing(self, begun: Iterable[int]) -> str:
        """See `slurm.doing`. Ends the run when SLURM has had none of its jobs for long, though Snakemake waits for some of `begun`."""
        said, waits = slurm.doing(self.folder), self._remote.intersection(begun)
        if said != slurm.NOTHING or not waits:
            self._nothing_since = None
            return said
        self._nothing_since = self._nothing_since or time.monotonic()
        if self._fail and time.monotonic() - self._nothing_since > STALLED:
            problem = f"Snakemake waits for jobs ({len(waits)}), and SLURM has had none of this run for {duration(STALLED)}"
            self._fail(f"{problem}: the run ends. Start it again: it goes on from what is finished.")
            self._fail = None
        return said

    def not_submitted(self, job: Mapping[str, object]) -> str:
        """Why a failed job never became one of SLURM's; empty where it did. job: fields of an event ``job_error`` or ``group_error``."""
        if job.get("jobid") in self._in_groups:
            return self._in_groups[job["jobid"]]
        group = str(job.get("event")) == "group_error"
        if not (group and not job.get("external_jobid")) and NOT_SUBMITTED not in str(job.get("rule_msg")):
            return ""
        why = slurm.refusal(self.folder) or ("the run is being ended" if (self.folder / "stopped").exists() else "")
        self._in_groups |= dict.fromkeys((info["jobid"] for info in job["job_error_info"]), why) if group and why else {}
        return why

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "told_before"):  # several handlers ask of the same record
            record.told_before = self._told_before(record)
        return not record.told_before

    def _told_before(self, record: logging.LogRecord) -> bool:
        if str(getattr(record, "event", "") or "") in ("job_error", "group_error"):
            if why := self.not_submitted(vars(record)):
                self._end(why)
            return bool(why)
        if not slurm.refusal(self.folder) and not (self.folder / "stopped").exists():
            return False
        repeated = next((start for start in REPEATED if record.getMessage().startswith(start)), "")
        known = repeated in self._said
        self._said |= {repeated} - {""}
        return known

    def _end(self, why: str) -> None:
        """Once: say why, and let Snakemake submit nothing more and finish what runs, as on SIGTERM."""
        if why not in self._said:
            self._said.add(why)
            text = f"No more jobs are submitted: {why}. Running ones are finished first; Ctrl-C cancels them."
            # from other threads: handlers of the log are locked here, and Snakemake may log while it holds the lock that it takes then
            threading.Thread(target=self._say, args=(text,)).start()
            threading.Thread(target=self._handlers[signal.SIGTERM], args=(signal.SIGTERM, None)).start()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """On Ctrl-C and SIGTERM: submissions that wait give up, too. Snakemake's handler of SIGTERM may wait for a lock of this thread."""
        slurm.stop(self.folder)
        if number == signal.SIGTERM:
            threading.Thread(target=self._handlers[number], args=(number, frame)).start()
        else:
            self._handlers[number](number, frame)
