"""What is the machine's fault and what the input's: by errno, by the words of libraries, and by what an error was raised from."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import openslide
import pytest
from tests.support.bad_nights import SmallDisk, apart

from pipeline.errors import InputError
from pipeline.files import atomic, write_text
from pipeline.jobs.run import SupersededError
from pipeline.logs import logged
from pipeline.machine import Faults, MachineError, machine_fault
from pipeline.slides.features import write_features
from pipeline.slides.overlay import write_picture


def of_system(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


def told(error: BaseException) -> str | None:
    fault = machine_fault(error)
    return fault and fault.problem


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (of_system(errno.ENOSPC), "the disk is full"),
        (of_system(errno.EDQUOT), "the disk quota is used up"),
        (of_system(errno.EROFS), "the file system is read-only"),
        (of_system(errno.EACCES), "permission is denied"),
        (of_system(errno.EPERM), "permission is denied"),
        (of_system(errno.EIO), "the disk does not read or write (input/output error)"),
        (of_system(errno.ESTALE), "the network disk does not answer"),
        (of_system(errno.ENOTCONN), "the network disk does not answer"),
        (of_system(errno.EMFILE), "too many files are open"),
        (of_system(errno.EFBIG), "the file would be larger than is allowed"),
        (MemoryError(), "memory is not enough"),
        (openslide.OpenSlideError("Couldn't open a.mrxs: Permission denied"), "permission is denied"),
        (OSError("Can't read data (file read failed: errno = 5, error message = 'Input/output error')"), "the disk does not read or write"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "memory is not enough"),
        (cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 8 bytes"), "memory is not enough"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "the memory of the GPU is not enough"),
    ],
)
def test_what_is_the_machines(error, problem):
    assert told(error).startswith(problem)
    passed_on = InputError("cannot be read", file="a.svs")
    passed_on.__cause__ = error
    assert told(passed_on) == told(error)
    assert pickle.loads(pickle.dumps(machine_fault(error))).args == machine_fault(error).args


@pytest.mark.parametrize(
    "error",
    [
        of_system(errno.ENOENT, "a.svs"),
        of_system(errno.EISDIR, "a.svs"),
        of_system(errno.EINVAL),
        OSError("broken data stream when reading image file"),
        InputError("unknown word", found="Permission denied"),
        KeyError("no space left on device"),
        RuntimeError("jpeg2k: out of memory"),  # a damaged stream that claims an absurd size
        ValueError("not a TIFF file"),
    ],
)
def test_what_is_the_inputs(error):
    assert machine_fault(error) is None


def test_the_path_is_that_of_the_error_or_of_what_was_worked_on():
    assert machine_fault(of_system(errno.EIO), "a.svs").path == "a.svs"
    assert machine_fault(of_system(errno.EIO, "b.svs"), "a.svs").path == "b.svs"
    assert (
        machine_fault(OSError("unable to open file: name = '/x/c.h5', errno = 13, error message = 'Permission denied'")).path == "/x/c.h5"
    )


def test_faults_of_many_units_are_one_message_by_cause():
    faults = Faults("slides", 20)
    faults.check()
    for number in range(7):
        faults.add(f"s{number}", machine_fault(of_system(errno.EACCES, f"s{number}.svs")))
    faults.add("t", machine_fault(MemoryError(), "t.svs"))
    with pytest.raises(MachineError) as raised:
        faults.check()
    assert str(raised.value) == (
        "not done for a cause that passes: 7 of 20 slides (s0, s1, s2, s3, s4, …): permission is denied at s0.svs; 1 of 20 slides (t): "
        "memory is not enough at t.svs. Give it back (ls -l); on a network disk the ticket may have expired (klist). Give the job more "
        "(--set-resources RULE:mem_mb=16000), or run fewer jobs at a time (--cores). Then run the same command again: what is finished "
        "is kept."
    )


def _hdf5(path: Path) -> None:
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("values", data=np.ones(4096))


def _weights(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        save_file({"w": torch.ones(4096)}, temporary)


def _checkpoint(path: Path) -> None:
    import torch

    from pipeline.training.checkpoint import save_checkpoint

    save_checkpoint(path, {"w": torch.ones(4096)}, "key")


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.png": lambda path: write_picture(path, np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)),
    "a.jpg": lambda path: write_picture(path, np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)),
    "a.tsv": lambda path: write_text(path, "x" * 9999),
    "a.h5": _hdf5,
    "features.h5": lambda path: write_features(path, np.ones((99, 99), np.float32), None, {}),
    "a.safetensors": _weights,
    "checkpoint.pt": _checkpoint,
}


def test_every_writer_tells_that_the_disk_is_full_and_leaves_nothing(tmp_path):
    """On a disk of one page, of which the file before is kept as it was."""

    def work() -> dict[str, str]:
        disk, said = SmallDisk(tmp_path / "disk", 4096), {}
        for name, write in WRITERS.items():
            path = disk.folder / name
            path.write_bytes(b"before")
            try:
                write(path)
            except MachineError as fault:
                said[name] = fault.reason
            assert [file.name for file in disk.folder.iterdir()] == [name]
            assert path.read_bytes() == b"before"
            path.unlink()
        return said

    assert apart(work) == {name: f"{tmp_path / 'disk' / name}: the disk is full." for name in WRITERS}


def test_a_superseded_run_is_told_in_its_own_words_across_processes():
    error = SupersededError(Path("/data/run"), "node1")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert machine_fault(error) is error


def test_a_job_ends_with_the_message_and_without_a_traceback(tmp_path):
    def job() -> int | str | None:
        with pytest.raises(SystemExit) as ended, logged(tmp_path / "log"):
            raise InputError("cannot be read", file="a.tsv") from of_system(errno.ESTALE, "/mnt/a.tsv")
        return ended.value.code

    assert apart(job) == 1
    assert "ERROR /mnt/a.tsv: the network disk does not answer. Mount it again" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
