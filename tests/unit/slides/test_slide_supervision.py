"""A slide may crash, hang or kill the process that reads it: it is tried twice, listed, and the others go on."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.slides.stages.manifests import run_slides
from pipeline.slides.stages.supervision import StopChunkError, alive, supervise
from pipeline.tables import read_table

ROWS = [{"slide_id": name} for name in ("a", "b", "c")]


def outcomes(process, patience: float = 30.0) -> list[dict]:
    return list(supervise(ROWS, process, patience))


def only_b(fault):
    """A process whose slide b meets a fault."""

    def process(row: dict) -> dict[str, object]:
        if row["slide_id"] == "b":
            fault()
        return {"slide": row["slide_id"], "process": os.getpid()}

    return process


def test_all_slides_run_in_one_child():
    found = outcomes(only_b(lambda: None))
    assert [f["slide"] for f in found] == ["a", "b", "c"]
    assert len({f["process"] for f in found}) == 1
    assert found[0]["process"] != os.getpid()


def segfault() -> None:
    faulthandler.disable()  # pytest's would print pages
    ctypes.string_at(0)


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        (segfault, "SIGSEGV: a crash of the decoder"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL: perhaps out of memory"),
        (lambda: os._exit(3), "exit status 3"),
    ],
)
def test_a_slide_that_ends_the_process_twice_is_given_up_alone(fault, end):
    found = outcomes(only_b(fault))
    assert found[1]["reason"] == f"slide b: reading it ended the process 2 times ({end})."
    assert [f.get("slide") for f in found] == ["a", None, "c"]


def test_a_slide_that_hangs_is_given_up_and_one_that_is_slow_is_not():
    found = outcomes(only_b(lambda: time.sleep(60)), patience=0.4)
    assert found[1]["reason"] == "slide b: reading it ended the process 2 times (nothing was heard of it for 0.4 s)."

    def slowly() -> None:
        for _ in range(8):
            time.sleep(0.1)
            alive()

    assert [f["slide"] for f in outcomes(only_b(slowly), patience=0.4)] == ["a", "b", "c"]


def test_a_crash_that_does_not_repeat_costs_nothing(tmp_path):
    def once() -> None:
        if not (tmp_path / "crashed").exists():
            (tmp_path / "crashed").touch()
            segfault()

    assert [f["slide"] for f in outcomes(only_b(once))] == ["a", "b", "c"]


def test_what_a_slide_raises_is_listed_with_its_remedy():
    def bad() -> None:
        raise InputError("no resolution", slide="b", remedy="Give one.")

    assert outcomes(only_b(bad))[1] == {"reason": "slide b: no resolution.", "remedy": "Give one."}

    def odd() -> None:
        raise RuntimeError("what\nnow")

    assert outcomes(only_b(odd))[1]["reason"] == "slide b: RuntimeError: what now"


@pytest.mark.parametrize(
    "error", [MemoryError("all of it"), OSError(errno.ENOSPC, "No space left on device"), InputError("no such checkpoint", file="w.bin")]
)
def test_what_would_meet_every_slide_is_raised_as_it_is(error):
    def fail() -> None:
        if isinstance(error, InputError):
            raise StopChunkError from error
        raise error

    with pytest.raises(type(error)) as raised:
        outcomes(only_b(fail))
    assert str(raised.value) == str(error)


def test_an_error_that_cannot_travel_keeps_its_words():
    class LocalError(Exception):
        pass

    def fail() -> None:
        raise StopChunkError from LocalError("odd device")

    with pytest.raises(RuntimeError, match="LocalError: odd device"):
        outcomes(only_b(fail))


def test_the_manifest_lists_the_crash_between_its_neighbours(tmp_path):
    slides = pd.DataFrame(ROWS)
    run_slides("tissue", slides, only_b(segfault), ["slide"], tmp_path / "m.tsv")
    table = read_table(tmp_path / "m.tsv").set_index("slide_id")
    assert table["status"].to_dict() == {"a": "ok", "b": "failed", "c": "ok"}
    assert "SIGSEGV" in table.loc["b", "reason"]
    assert "give the job more memory or leave the slide out" in table.loc["b", "remedy"]


ORPHAN = """
import sys, time, os
sys.path.insert(0, {src!r})
from pipeline.slides.stages.supervision import supervise
def process(row):
    print(os.getpid(), flush=True)
    time.sleep(120)
    return {{}}
list(supervise([{{"slide_id": "a"}}], process, 100.0))
"""


def test_the_child_ends_with_its_parent():
    src = str(Path(__file__).parents[3] / "src")
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN.format(src=src)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        try:
            os.kill(child, 0)
            if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
                break
        except (ProcessLookupError, FileNotFoundError):
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child outlived its parent by ten seconds")
