"""What a run says when it ends: what failed, why, where the text is, and the command that goes on."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.jobs import slurm
from pipeline.jobs.cluster import Cluster
from pipeline.progress import Progress

log = logging.getLogger(__name__)

SHOWN, WIDTH = 5, 300  # failures that are named, and characters of a line: the end is to fit on a screen
TAIL = 65536  # bytes of a log that are looked through for its error
STATUS = re.compile(r"SLURM status is: '(\w+)'")
TELLING = re.compile(r"(?: ERROR |slurmstepd: error: |^\w*(?:Error|Exception)\b:? ?)(.+)$")
NOT_SUBMITTED = "not submitted"
SECONDS = 60  # that the command of `notify` may take
MEANS = {
    "TIMEOUT": "it needs more runtime",
    "OUT_OF_MEMORY": "it needs more mem_mb",
    "NODE_FAIL": "its node died",
    "CANCELLED": "somebody or a preemption ended it",
    slurm.LOST: "SLURM no longer knows it",
}


@dataclass
class Failure:
    """The last failure of one job."""

    stage: str
    output: str
    cause: str = ""
    logs: Sequence[str] = field(default_factory=list)


class Ending(logging.Handler):
    """Hears Snakemake's events beside `progress`, and says through `say` how the run ended; with a `cluster` what SLURM told of jobs."""

    def __init__(self, progress: Progress, say: Callable[[str], None], cluster: Cluster | None = None) -> None:
        super().__init__()
        self._progress, self._say, self._cluster = progress, say, cluster
        self._begin = time.time()
        self._failures: dict[int, Failure] = {}
        self._groups: dict[int, Mapping[str, object]] = {}  # job → what was told of its group

    def emit(self, record: logging.LogRecord) -> None:
        event = str(getattr(record, "event", "") or "")
        if event == "job_started":
            for job in record.jobs:
                self._failures.pop(job, None)
        elif event == "job_finished":
            self._failures.pop(record.job_id, None)
        elif event == "group_error":
            self._groups |= {info["jobid"]: vars(record) for info in record.job_error_info}
        elif event == "job_error":
            self._failures[record.jobid] = self._failure(record)

    def _failure(self, record: logging.LogRecord) -> Failure:
        group = self._groups.pop(record.jobid, {})
        cause = self._cause(record, group)
        logs = [str(file) for file in [*record.log, *group.get("aux_logs", [])] if file and not cause.startswith(NOT_SUBMITTED)]
        return Failure(record.rule_name, next(map(str, record.output), ""), cause, list(dict.fromkeys(logs)))

    def _cause(self, record: logging.LogRecord, group: Mapping[str, object]) -> str:
        """What SLURM told of a job, or of the group that it ran in."""
        if not self._cluster:
            return ""
        if refused := self._cluster.not_submitted(vars(record)):
            return f"{NOT_SUBMITTED}: {refused}"
        told = STATUS.search(record.rule_msg or "")
        job = str(record.aux.get("external_jobid") or group.get("external_jobid") or "")
        state = told[1] if told else slurm.states(self._cluster.folder).get(job, "COMPLETED")
        return "" if state == "COMPLETED" else f"SLURM says {state}" + (f": {MEANS[state]}" if state in MEANS else "")

    def failed(self, command: str) -> str:
        """Say in less than twenty lines what failed and that `command` goes on; returns what was said."""
        kinds: dict[tuple[str, str, str], list[tuple[Failure, str]]] = defaultdict(list)
        for failure in self._failures.values():
            file, text = self._told(failure)
            kinds[failure.stage, failure.cause, text].append((failure, file))
        lines = [f"The run has ended: {self._progress.line()}"]
        for (stage, cause, text), jobs in sorted(kinds.items(), key=lambda kind: -len(kind[1]))[:SHOWN]:
            count = f"{len(jobs)} jobs" if len(jobs) > 1 else "1 job"
            outputs = ", ".join(failure.output for failure, _ in jobs[:3]) + (", …" if len(jobs) > 3 else "")
            lines.append(f"failed: {stage}, {count} ({outputs})" + (f"; {cause}" if cause else ""))
            if not cause.startswith(NOT_SUBMITTED):
                lines.append(f"    {jobs[0][1] or 'no log was written'}" + (f": {text}" if text else ""))
        if len(kinds) > SHOWN:
            lines.append(f"and {len(kinds) - SHOWN} other failures: see the complete log")
        lines += ["What is finished is kept. Next, when the cause is gone:", f"    {command}"]
        text = "\n".join(line if line.strip() == command else _short(line) for line in lines)
        self._say(text)
        return text

    def done(self) -> str:
        """Say that all is done; returns what was said."""
        text = f"The run is done: {self._progress.line()}"
        self._say(text)
        return text

    def _told(self, failure: Failure) -> tuple[str, str]:
        """The log that tells most of a failure, and its last line about an error."""
        files = [file for file in map(Path, failure.logs) if file.exists() and file.stat().st_mtime >= self._begin - 1]
        told = [(str(file), text) for file in files if (text := _error(file))]
        return next(iter(told), (next(map(str, files), ""), ""))


def _error(file: Path) -> str:
    """The last line of a log that tells of an error, without the time."""
    with open(file, "rb") as handle:
        handle.seek(max(0, file.stat().st_size - TAIL))
        lines = handle.read().decode(errors="replace").splitlines()
    found = (TELLING.search(line) for line in reversed(lines))
    return next((match[1].strip() for match in found if match), "")


def _short(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def notify(command: str, text: str, ended: str) -> None:
    """Run the user's `command` (setting ``notify``) with `text` as its input; SLIDE2SURV_ENDED tells it ``done`` or ``failed``."""
    if not command:
        return
    environment = {**os.environ, "SLIDE2SURV_ENDED": ended}
    try:
        done = subprocess.run(
            command, shell=True, input=f"{text}\n", text=True, capture_output=True, timeout=SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        log.warning("notify: %s did not end within %d s", command, SECONDS)
        return
    if done.returncode:
        log.warning("notify: %s ended with status %d: %s", command, done.returncode, done.stderr.strip().rpartition("\n")[2])
