"""What stands between Snakemake's plugin and SLURM: `sbatch` that waits, and status queries that do not forget a job.

The plugin takes every refusal for a failure of the job and repeats it at once, and forgets all jobs for ever when SLURM does not answer for
some seconds. So the driver puts programs of these names first in its PATH (`lay_out`), which call the real ones and are this file, run as a
script: it imports nothing but the standard library. They know nothing of the plugin but the commands that it calls.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "sacct", "sinfo")
ANSWER = 25  # seconds that SLURM may take; the plugin waits 60, perhaps for two questions
NOTHING = "0 running, 0 waiting"
FORGOTTEN = 300.0  # seconds for which SLURM does not list a job before it counts as lost; SLIDE2SURV_FORGOTTEN states another number
LOST = "ERROR"  # the plugin takes it for a failure; SLURM itself has no such state
DONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", LOST)
FIRST_WAIT, LONGEST_WAIT = 5.0, 60.0  # seconds between two tries of a submission
TRIES = 3  # of a submission that a full queue refuses although nothing of ours is in the queue

ABSENT = re.compile(
    r"unable to contact|socket timed out|connection (refused|timed out|reset)|transport endpoint|temporarily una|try again|standby mode"
    r"|zero bytes were transmitted|unexpected message received|communication (connection|shutdown)|authentication (plugin|error)|munge",
    re.IGNORECASE,
)
FULL = re.compile(r"job submit limit|\w*Submit\w*Limit|MaxJobCount|too many jobs", re.IGNORECASE)
LIMIT = re.compile(r"\b(?:QOS|Assoc|Max|Grp)\w*Limit\b")  # which limit it is, where SLURM tells it beside the general message


def lay_out(folder: Path) -> None:
    """Make `folder` (``.snakemake/slurm``) anew with its programs, and put them first in this process's PATH."""
    shutil.rmtree(folder, ignore_errors=True)
    programs = folder.resolve() / "bin"
    programs.mkdir(parents=True)
    for name in PROGRAMS:
        if shutil.which(name):
            words = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(folder.resolve()), str(os.getpid()), name]
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            (programs / name).chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"


def stop(folder: Path) -> None:
    """Submit nothing more: submissions that wait give up."""
    (folder / "stopped").touch()


def refusal(folder: Path) -> str | None:
    """Why SLURM refuses jobs for good, if it does."""
    return _text(folder / "refused") or None


def trouble(folder: Path) -> list[str]:
    """What keeps the run waiting now: a queue that takes no more jobs, a SLURM that does not answer."""
    return [text for name in ("waiting", "silent") if (text := _text(folder / name))]


def states(folder: Path) -> dict[str, str]:
    """Job id → the last state that SLURM told of it, by the plugin's queries."""
    return _read(folder / "states.json")


def doing(folder: Path) -> str:
    """What the jobs of the run do: ``12 running, 88 waiting (Resources 60, Priority 28)``, and what keeps the run waiting."""
    runs = {line.partition("\t")[0] for line in _text(folder / "submitted.tsv").splitlines()}
    command = ["squeue", "--me", "--noheader", f"--name={','.join(sorted(runs))}", "--format=%T|%r"]
    status, listed, _ = _ask(command, _real(folder.resolve())) if runs else (1, "", "")
    rows = [line.split("|", 1) for line in listed.splitlines() if "|" in line]
    why = Counter(why for state, why in rows if state == "PENDING")
    reasons = ", ".join(f"{name} {count}" for name, count in why.most_common())
    counts = f"{len(rows) - why.total()} running, {why.total()} waiting" + (f" ({reasons})" if why else "")
    return "; ".join([*([] if status else [counts]), *trouble(folder)])


def _real(folder: Path) -> dict[str, str]:
    """The environment in which SLURM's own programs are found, and not those in `folder`."""
    places = os.environ["PATH"].split(os.pathsep)
    return {**os.environ, "PATH": os.pathsep.join(place for place in places if Path(place) != folder / "bin")}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _read(file: Path) -> dict:
    try:
        return json.loads(_text(file) or "{}")
    except json.JSONDecodeError:
        return {}


def _write(file: Path, text: str) -> None:
    """At once, so that nobody reads half of it; nothing is lost with it, so it need not be on the disk."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _ask(command: Sequence[str], environment: dict[str, str], given: str = "", seconds: float | None = ANSWER) -> tuple[int, str, str]:
    """Exit status and output of a command; status 1 when it does not answer in so many `seconds`."""
    try:
        done = subprocess.run(command, env=environment, input=given, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer within {seconds:g} s"
    return done.returncode, done.stdout, done.stderr


class Call:
    """One call of sbatch, or of sinfo, by which the plugin finds the partition: repeated while SLURM cannot serve it yet."""

    def __init__(self, folder: Path, driver: int, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self._folder, self._driver, self._arguments, self._environment = folder, driver, arguments, environment
        self._in_vain = 0

    def ask(self) -> int:
        """Call sinfo, again for as long as SLURM does not answer; prints what it prints, and returns its exit status."""
        waits = FIRST_WAIT
        while True:
            status, printed, said = _ask(["sinfo", *self._arguments], self._environment)
            if not status or not ABSENT.search(said) or self._ended():
                (self._folder / "silent").unlink(missing_ok=True)
                print(printed, end="")
                print(said, end="", file=sys.stderr)
                return status
            _silent(self._folder, said)
            self._sleep(waits)
            waits = min(2 * waits, LONGEST_WAIT)

    def submit(self) -> int:
        """Submit; prints what sbatch prints, and returns its exit status."""
        given = sys.stdin.read() if "/dev/stdin" in self._arguments else ""
        waits = FIRST_WAIT
        while True:
            if known := refusal(self._folder) or self._ended():
                print(known, file=sys.stderr)
                return 1
            status, printed, said = _ask(["sbatch", *self._arguments], self._environment, given, None)
            if status and ABSENT.search(said) and (accepted := self._accepted()):
                status, printed = 0, f"{accepted}\n"
            if not status:
                self._keep(printed)
                print(printed, end="")
                print(said, end="", file=sys.stderr)
                return 0
            why = reason(said)
            if not self._passes(said):
                _write(self._folder / "refused", why)
                print(why, file=sys.stderr)
                return status
            _write(self._folder / "waiting", f"submitting waits, SLURM says: {why}")
            self._sleep(waits)
            waits = min(2 * waits, LONGEST_WAIT)

    def _ended(self) -> str:
        """Why nothing is to be submitted any more."""
        try:
            os.kill(self._driver, 0)
        except OSError:
            return "the snakemake that submits has ended"
        return "the run is being ended: nothing more is submitted" if (self._folder / "stopped").exists() else ""

    def _passes(self, said: str) -> bool:
        """Whether the same job can be accepted later."""
        if ABSENT.search(said):
            return True
        limits = LIMIT.findall(said)
        if not FULL.search(said) or (limits and not any("Submit" in limit for limit in limits)):
            return False
        status, listed, _ = _ask(["squeue", "--me", "--noheader", "--format=%i"], self._environment)
        drains = status != 0 or listed.strip() or "Grp" in said  # others' jobs fill a group's limit
        self._in_vain = 0 if drains else self._in_vain + 1
        return self._in_vain < TRIES

    def _accepted(self) -> str:
        """The job, where SLURM took it and only its answer was lost."""
        name, comment = (_option(self._arguments, option) for option in ("--job-name", "--comment"))
        _, listed, _ = _ask(["squeue", "--me", "--noheader", "--states=all", "--name", name, "--format=%i|%k"], self._environment)
        known = {line.split("\t")[1] for line in _text(self._folder / "submitted.tsv").splitlines()}
        jobs = [line.split("|", 1) for line in listed.splitlines() if "|" in line]
        return next((job for job, said in jobs if said == comment and job not in known), "")

    def _keep(self, printed: str) -> None:
        (self._folder / "waiting").unlink(missing_ok=True)
        name = _option(self._arguments, "--job-name")
        with open(self._folder / "submitted.tsv", "a", encoding="utf-8") as file:
            file.write(f"{name}\t{printed.strip().partition(';')[0].rpartition(' ')[2]}\n")

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._ended():
            time.sleep(0.5)


def reason(said: str) -> str:
    """What sbatch said, on one line and without what is said of every failure.

    >>> reason("sbatch: error: invalid partition specified: x\\nsbatch: error: Batch job submission failed: Invalid partition name")
    'invalid partition specified: x; Invalid partition name'
    """
    lines = [re.sub(r"^sbatch: (error: |fatal: )?(Batch job submission failed: )?", "", line) for line in said.strip().splitlines()]
    return "; ".join(line for line in lines if line) or "sbatch fails without a message"


def answer(folder: Path, command: Sequence[str], environment: dict[str, str]) -> int:
    """A status query: where SLURM does not answer, no job is listed, which the plugin takes for no news. Lost jobs are told.

    Where accounting does not answer, the controller is asked.
    """
    run = _option(command, "--name")
    status, printed, said = _ask(command, environment)
    if status and command[0] == "sacct":
        status, printed, said = _ask(["squeue", "--format=%i|%T", "--states=all", "--noheader", "--name", run], environment)
    if status:
        _silent(folder, said)
        return 0
    (folder / "silent").unlink(missing_ok=True)
    print(printed, end="")
    listed = dict(line.split("|", 1) for line in printed.splitlines() if "|" in line)
    for job in _lost(folder, run, {**states(folder), **listed}, {job.partition("_")[0] for job in listed}):
        print(f"{job}|{LOST}")
    return 0


def _silent(folder: Path, said: str) -> None:
    """Note that SLURM does not answer, and since when."""
    since = _text(folder / "silent").partition(": ")[0] or f"SLURM does not answer since {time.strftime('%H:%M:%S')}"
    _write(folder / "silent", f"{since}: {said.strip().rpartition(chr(10))[2]}")


def _lost(folder: Path, run: str, known: dict[str, str], listed: set[str]) -> list[str]:
    """The jobs of `run` that SLURM has not listed for a while, though it never said that they had ended; keeps what is `known`."""
    missing, now = _read(folder / "missing.json"), time.time()
    patience = float(os.environ.get("SLIDE2SURV_FORGOTTEN", FORGOTTEN))
    submitted = [line.split("\t") for line in _text(folder / "submitted.tsv").splitlines()]
    gone = [job for name, job in submitted if name == run and job not in listed and known.get(job, "").split(" ")[0] not in DONE]
    since = {job: missing.get(job, now) for job in gone}
    lost = [job for job in gone if now - since[job] >= patience]
    _write(folder / "missing.json", json.dumps(since))
    _write(folder / "states.json", json.dumps({**known, **dict.fromkeys(lost, LOST)}))
    return lost


def _option(arguments: Sequence[str], name: str) -> str:
    """The value of an option, in either way of writing it."""
    for place, word in enumerate(arguments):
        if word == name and place + 1 < len(arguments):
            return arguments[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def main(folder: Path, driver: int, name: str, arguments: Sequence[str]) -> int:
    """Be the program `name`, with the real ones in PATH."""
    environment = _real(folder)
    if name == "sbatch" and _option(arguments, "--job-name"):
        return Call(folder, driver, arguments, environment).submit()
    if name == "sinfo":
        return Call(folder, driver, arguments, environment).ask()
    if name != "sbatch" and _option(arguments, "--name"):
        return answer(folder, [name, *arguments], environment)
    program = shutil.which(name, path=environment["PATH"]) or name
    os.execve(program, [program, *arguments], environment)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
