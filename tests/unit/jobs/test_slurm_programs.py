"""What stands between the plugin and SLURM, with a SLURM of shell scripts; the real one is in tests/cluster/test_slurm.py."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.jobs import slurm

RUN = "f62abd3d-acdd-4ae3-9766-109329c68285"
SBATCH = ["sbatch", "--parsable", "--job-name", RUN, "--comment", "rule_tissue", "--wrap=true"]
STATUS = ["squeue", "--format=%i|%T", "--states=all", "--noheader", "--name", RUN]
ACCOUNTS = ["sacct", "-X", "--parsable2", "--noheader", "--format=JobIdRaw,State", "--name", RUN]
FAILED = "sbatch: error: Batch job submission failed: "
POLICY = f"{FAILED}Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
LIMIT = f"sbatch: error: AssocMaxSubmitJobLimit\n{POLICY}"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder for SLURM's programs, first in PATH but for ours, which are laid out; every wait is short."""
    real = tmp_path / "real"
    real.mkdir()
    monkeypatch.setenv("PATH", str(real), prepend=":")
    for name in slurm.PROGRAMS:
        be(real, name, "exit 99")
    monkeypatch.setattr(slurm, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(slurm, "LONGEST_WAIT", 0.01)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # undone, with what `lay_out` puts before it
    slurm.lay_out(tmp_path / "slurm")
    return tmp_path


def be(real: Path, name: str, text: str) -> None:
    """Let SLURM's program do what the shell's `text` says, and count its calls."""
    (real / name).write_text(f"#!/bin/sh\necho call >> {real}/{name}.calls\n{text}\n")
    (real / name).chmod(0o755)


def calls(lab: Path, name: str) -> int:
    file = lab / f"real/{name}.calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


def call(lab: Path, capsys, command: list[str]) -> tuple[int, str, str]:
    """Our program, in this process."""
    status = slurm.main((lab / "slurm").resolve(), os.getpid(), command[0], command[1:])
    return status, *capsys.readouterr()


def failing(times: int, message: str, then: str = "echo 42") -> str:
    """A sbatch that is refused so often."""
    return f'if [ $(wc -l < "$0.calls") -le {times} ]; then cat >&2 <<"END"\n{message}\nEND\nexit 1; fi; {then}'


@pytest.mark.parametrize(
    "message",
    [
        LIMIT,
        POLICY,
        f"{FAILED}Unable to contact slurm controller (connect failure)",
        f"{FAILED}Socket timed out on send/recv operation",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
        f"{FAILED}Resource temporarily unavailable",
    ],
)
def test_what_passes_is_waited_for(lab, capsys, message):
    be(lab / "real", "sbatch", failing(2, message))
    be(lab / "real", "squeue", 'case "$*" in *--comment*|*%k*) ;; *) echo 7;; esac')
    assert call(lab, capsys, SBATCH) == (0, "42\n", "")
    assert calls(lab, "sbatch") == 3
    assert slurm.trouble(lab / "slurm") == []
    assert (lab / "slurm/submitted.tsv").read_text() == f"{RUN}\t42\n"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            f"sbatch: error: invalid partition specified: gpuu\n{FAILED}Invalid partition name specified",
            "invalid partition specified: gpuu; Invalid partition name specified",
        ),
        (
            f"{FAILED}Invalid account or account/partition combination specified",
            "Invalid account or account/partition combination specified",
        ),
        (LIMIT.replace("MaxSubmitJob", "MaxWallDurationPerJob"), None),
        ("", "sbatch fails without a message"),
    ],
)
def test_what_does_not_pass_is_tried_once_for_all_jobs(lab, capsys, message, line):
    be(lab / "real", "sbatch", failing(9, message))
    be(lab / "real", "squeue", "echo 7")
    first, second = call(lab, capsys, SBATCH), call(lab, capsys, SBATCH)
    assert first == second == (1, "", f"{line or slurm.reason(message)}\n")
    assert calls(lab, "sbatch") == 1
    assert slurm.refusal(lab / "slurm") == first[2].strip()


def test_a_full_queue_in_which_nothing_of_ours_waits_does_not_drain(lab, capsys):
    be(lab / "real", "sbatch", failing(9, LIMIT))
    be(lab / "real", "squeue", "true")
    assert call(lab, capsys, SBATCH)[0] == 1
    assert calls(lab, "sbatch") == slurm.TRIES


def test_a_job_whose_acceptance_was_lost_is_not_submitted_twice(lab, capsys):
    be(lab / "real", "sbatch", failing(9, f"{FAILED}Socket timed out on send/recv operation"))
    be(lab / "real", "squeue", "printf '40|rule_patches\\n41|rule_tissue\\n'")
    assert call(lab, capsys, SBATCH) == (0, "41\n", f"{FAILED}Socket timed out on send/recv operation\n")
    assert calls(lab, "sbatch") == 1


def test_a_submission_that_waits_says_so_and_gives_up_when_the_run_is_ended(lab, capsys):
    be(lab / "real", "sbatch", failing(99, LIMIT))
    be(lab / "real", "squeue", "echo 7")
    seen = []

    def end() -> None:
        while not (told := slurm.trouble(lab / "slurm")):
            pass
        seen.extend(told)
        slurm.stop(lab / "slurm")

    ending = threading.Thread(target=end)
    ending.start()
    status, _, said = call(lab, capsys, SBATCH)
    ending.join()
    assert (status, said) == (1, "the run is being ended: nothing more is submitted\n")
    assert seen[0].startswith("submitting waits, SLURM says: AssocMaxSubmitJobLimit; Job violates accounting")


def test_no_answer_is_no_news_and_is_told(lab, capsys):
    be(lab / "real", "squeue", "echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1")
    assert call(lab, capsys, STATUS) == (0, "", "")
    (said,) = slurm.trouble(lab / "slurm")
    assert said.startswith("SLURM does not answer since ")
    assert said.endswith(": slurm_load_jobs error: Unable to contact slurm controller")
    assert call(lab, capsys, STATUS) == (0, "", "")
    assert slurm.trouble(lab / "slurm") == [said]
    be(lab / "real", "squeue", "echo '42|RUNNING'")
    assert call(lab, capsys, STATUS) == (0, "42|RUNNING\n", "")
    assert slurm.trouble(lab / "slurm") == []


def test_the_partition_is_asked_for_until_slurm_answers(lab, capsys):
    be(lab / "real", "sinfo", failing(2, "slurm_load_partitions: Unable to contact slurm controller (connect failure)", "echo cpu*"))
    assert call(lab, capsys, ["sinfo", "-h", "-o", "%P"]) == (0, "cpu*\n", "")
    assert calls(lab, "sinfo") == 3
    be(lab / "real", "sinfo", failing(9, "sinfo: fatal: Could not establish a configuration source"))
    assert call(lab, capsys, ["sinfo"])[0] == 1


def test_without_accounting_the_controller_is_asked(lab, capsys):
    be(lab / "real", "sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    be(lab / "real", "squeue", "echo '42|COMPLETED'")
    assert call(lab, capsys, ACCOUNTS) == (0, "42|COMPLETED\n", "")


def test_a_job_that_slurm_does_not_list_for_a_while_is_lost_and_one_that_ended_is_not(lab, capsys, monkeypatch):
    be(lab / "real", "sbatch", 'echo $(wc -l < "$0.calls")')
    for _ in range(3):
        call(lab, capsys, SBATCH)
    be(lab / "real", "squeue", "printf '1|RUNNING\\n2|COMPLETED\\n3|RUNNING\\n'")
    assert call(lab, capsys, STATUS)[1] == "1|RUNNING\n2|COMPLETED\n3|RUNNING\n"
    be(lab / "real", "squeue", "printf '1|RUNNING\\n'")
    assert call(lab, capsys, STATUS)[1] == "1|RUNNING\n"
    monkeypatch.setenv("SLIDE2SURV_FORGOTTEN", "0")
    assert call(lab, capsys, STATUS)[1] == "1|RUNNING\n3|ERROR\n"
    assert slurm.states(lab / "slurm") == {"1": "RUNNING", "2": "COMPLETED", "3": "ERROR"}


def test_what_the_jobs_do_is_told_in_one_line(lab, capsys):
    assert slurm.doing(lab / "slurm") == ""
    be(lab / "real", "sbatch", "echo 1")
    call(lab, capsys, SBATCH)
    be(lab / "real", "squeue", "printf 'RUNNING|None\\nPENDING|Priority\\nPENDING|Resources\\nPENDING|Resources\\n'")
    assert slurm.doing(lab / "slurm") == "1 running, 3 waiting (Resources 2, Priority 1)"


def test_the_programs_in_path_are_ours_and_jobs_do_not_see_them(lab):
    be(lab / "real", "sbatch", f'echo "$PATH" > {lab}/path; cat; echo 5')
    be(lab / "real", "squeue", 'echo "$@"')
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([*SBATCH, "/dev/stdin"], input="script\n", text=True, capture_output=True, check=True, env=environment)
    assert done.stdout == "script\n5\n"
    assert str(lab / "slurm") not in (lab / "path").read_text()
    other = subprocess.run(["squeue", "--me"], text=True, capture_output=True, check=True, env=environment)
    assert other.stdout == "--me\n"


def test_ctrl_c_ends_a_submission_that_waits(lab):
    be(lab / "real", "sbatch", failing(99, LIMIT))
    be(lab / "real", "squeue", "echo 7")
    # a shell that runs the tests in the background lets them ignore Ctrl-C
    with subprocess.Popen(SBATCH, stderr=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as waiting:
        try:
            while not slurm.trouble(lab / "slurm"):
                assert waiting.poll() is None
            waiting.send_signal(signal.SIGINT)
            assert waiting.wait(10) != 0
        finally:
            waiting.kill()
    assert sys.executable in (lab / "slurm/bin/sbatch").read_text()
