"""A slide may crash, hang or kill the process that reads it: it is tried twice, listed, and the others go on."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.machine import MachineError
from pipeline.slides.opening import UnreadableRegionError
from pipeline.slides.provenance import slide_fingerprint
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


def abort() -> None:
    faulthandler.disable()
    os.abort()


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        (segfault, "SIGSEGV: a crash of the decoder"),
        (abort, "SIGABRT: a crash of the decoder"),
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


def fault(number: int, *path: str) -> OSError:
    return OSError(number, os.strerror(number), *path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (fault(errno.ENOSPC), "the disk is full."),
        (fault(errno.EMFILE, "b.png"), "b.png: too many files are open."),
        (StopChunkError(), "w.bin: no such checkpoint"),
    ],
)
def test_what_would_meet_every_slide_is_raised(error, message):
    def fail() -> None:
        raise error from InputError("no such checkpoint", file="w.bin")

    with pytest.raises((MachineError, InputError)) as raised:
        outcomes(only_b(fail))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (MemoryError("all of it"), "memory is not enough"),
        (fault(errno.EACCES), "permission is denied"),
        (fault(errno.EIO), "the disk does not read or write (input/output error)"),
        (fault(errno.ESTALE), "the network disk does not answer"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["raised", "as InputError"])
def test_a_fault_of_the_machine_is_no_property_of_its_slide_and_the_others_go_on(error, problem, wrapped):
    def fail() -> None:
        if wrapped:
            raise InputError("cannot be read", file="/data/b.svs") from error
        raise error

    found = outcomes(only_b(fail))
    assert isinstance(found[1], MachineError)
    assert found[1].problem == problem
    assert [found[0]["slide"], found[2]["slide"]] == ["a", "c"]


def test_an_absent_file_is_the_inputs():
    def fail() -> None:
        raise fault(errno.ENOENT)

    assert outcomes(only_b(fail))[1]["reason"].startswith("slide b: FileNotFoundError")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP, signal.SIGXCPU])
def test_a_kill_is_no_property_of_the_slide(how, tmp_path):
    """Twice, as by the kernel for want of memory: the job fails, and the same call goes on once it is gone."""
    kills = tmp_path / "kills"
    kills.touch()

    def killed() -> None:
        if kills.exists():
            if how != signal.SIGKILL:
                signal.signal(how, signal.SIG_DFL)  # who runs the tests may ignore it, as nohup does
            os.kill(os.getpid(), how)

    manifest = tmp_path / "m.tsv"
    with pytest.raises(MachineError) as raised:
        run_slides("tissue", pd.DataFrame(ROWS), only_b(killed), ["slide"], manifest)
    assert not manifest.exists()
    assert str(raised.value).startswith(f"not done for a cause that passes: 1 of 3 slides (b): reading it was ended 2 times ({how.name}")
    assert "Give the job more (--set-resources RULE:mem_mb=" in str(raised.value)
    kills.unlink()
    run_slides("tissue", pd.DataFrame(ROWS), only_b(killed), ["slide"], manifest)
    assert list(read_table(manifest)["status"]) == ["ok"] * 3


def test_memory_that_is_limited_is_the_machines(tmp_path):
    """The address space of the child is bounded while slide b asks for ten gigabytes: a MemoryError of NumPy."""

    def greedy() -> None:
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, limits[1]))
        try:
            np.zeros(10 << 30, np.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)

    found = outcomes(only_b(greedy))
    assert found[1].problem == "memory is not enough"
    assert found[2]["slide"] == "c"


@pytest.mark.parametrize("is_whole", [True, False], ids=["the disk reads", "the disk does not read"])
def test_sigbus_is_the_slides_only_where_the_disk_gives_its_bytes(tmp_path, is_whole):
    """Bytes beyond the end of what is mapped; /proc/self/mem is a file that opens and whose reading is an input/output error."""
    slide = tmp_path / "b.bmp"
    slide.write_bytes(bytes(8192)) if is_whole else slide.symlink_to("/proc/self/mem")

    def beyond() -> None:
        faulthandler.disable()
        with open(tmp_path / "cut", "wb+") as handle:
            handle.truncate(8192)
            mapped = mmap.mmap(handle.fileno(), 8192)
            handle.truncate(0)
            mapped[5000]

    rows = [{**row, "path": str(slide)} for row in ROWS]
    found = list(supervise(rows, only_b(beyond), 30.0))[1]
    if is_whole:
        assert "(SIGBUS: a file that it read was cut, or a disk did not read)" in found["reason"]
    else:
        assert (found.problem, found.path) == ("the disk does not read or write (input/output error)", str(slide))


def test_pixels_that_a_disk_does_not_give_are_no_damage(tmp_path):
    """OpenSlide tells of a disk that does not read as of a damaged slide; the file is therefore read to its end before it is blamed."""
    whole, stuck = tmp_path / "whole.svs", tmp_path / "stuck.svs"
    whole.write_bytes(b"pixels")
    stuck.symlink_to("/proc/self/mem")

    def undecodable(row: dict) -> dict[str, object]:
        raise InputError("more than 10% of the slide cannot be read", file=row["path"]) from UnreadableRegionError("TIFFReadTile failed")

    rows = [{"slide_id": path.stem, "path": str(path)} for path in (whole, stuck)]
    damaged, fault = supervise(rows, undecodable, 30.0)
    assert "cannot be read" in damaged["reason"]
    assert fault.problem == "the disk does not read or write (input/output error)"


@pytest.mark.parametrize("change", ["replaced", "gone"])
def test_a_slide_that_is_not_the_one_that_was_listed_is_no_row(tmp_path, change):
    """A disk that is unmounted, or a slide that is copied anew, while the run goes on."""
    paths = [tmp_path / f"{name}.svs" for name in "ab"]
    for path in paths:
        path.write_bytes(path.name.encode())
    listed = [slide_fingerprint(path) for path in paths]
    slides = pd.DataFrame({"slide_id": ["a", "b"], "path": [str(path) for path in paths], "fingerprint": listed})
    if change == "gone":
        paths[1].unlink()
    else:
        paths[1].write_bytes(b"other")
    problem = "is gone since the slides were listed" if change == "gone" else "was changed since the slides were listed"
    with pytest.raises(MachineError, match=f"1 of 2 slides \\(b\\): {problem} at {paths[1]}"):
        run_slides("tissue", slides, lambda row: {}, [], tmp_path / "out/m.tsv")
    run_slides("tissue", slides.assign(fingerprint=[listed[0], float("nan")]), lambda row: {}, [], tmp_path / "out/m.tsv")
    assert len(read_table(tmp_path / "out/m.tsv")) == 2


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
