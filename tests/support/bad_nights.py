"""Bad nights that are real, each in a process of its own: a disk that fills, files that nobody may read."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000  # flags of unshare(2)
REMOUNT, PRIVATE = 0x20, 0x4000 | 0x40000  # of mount(2); the latter for all that lies below
DROP_BOUNDING = 24  # of prctl(2)
PASSING_RIGHTS = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: by which root reads what nobody may read


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a forked process, whose mounts and rights are its own. A test that it skips is skipped."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, arguments, sending))
    process.start()
    sending.close()
    try:
        kind, value = receiving.recv()
    except EOFError:
        process.join()
        kind, value = "failed", f"exit code {process.exitcode}"
    process.join()
    if kind == "skip":
        pytest.skip(value)
    assert kind == "done", value
    return value


def _work(work: Callable[..., Any], arguments: tuple, parent: Any) -> None:
    try:
        parent.send(("done", work(*arguments)))
    except pytest.skip.Exception as reason:
        parent.send(("skip", str(reason)))
    except BaseException:
        parent.send(("failed", traceback.format_exc()))


class SmallDisk:
    """A file system of `size` bytes in memory at `folder`, which only this process and its children see."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, user, group = folder, os.getuid(), os.getgid()
        if LIBC.unshare(NEW_MOUNTS) and LIBC.unshare(NEW_MOUNTS | NEW_USER):
            pytest.skip("this machine gives no mounts of one's own (unshare: " + os.strerror(ctypes.get_errno()) + ")")
        if os.getuid() != user:
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
                Path("/proc/self", name).write_text(text)
        self._mount(b"/", None, PRIVATE, "")
        folder.mkdir(parents=True, exist_ok=True)
        self._mount(bytes(folder), b"tmpfs", 0, f"size={size}")

    def resize(self, size: int) -> None:
        """Make it as large as `size` bytes."""
        self._mount(bytes(self.folder), b"tmpfs", REMOUNT, f"size={size}")

    def _mount(self, place: bytes, kind: bytes | None, flags: int, options: str) -> None:
        if LIBC.mount(b"none", place, kind, flags, options.encode()):
            pytest.skip("this machine mounts nothing (mount: " + os.strerror(ctypes.get_errno()) + ")")


def obey_permissions() -> None:
    """From now on permissions hold for this process and its children, as for anybody who is not root."""
    for right in PASSING_RIGHTS:
        LIBC.prctl(DROP_BOUNDING, right, 0, 0, 0)  # programs that it starts get them no more
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()
    LIBC.capget(header, sets)
    for at in (0, 1):  # effective, permitted
        sets[at] &= ~sum(1 << right for right in PASSING_RIGHTS)
    LIBC.capset(header, sets)


def require_obedience(file: Path) -> None:
    """Skip the test where `file`, which nobody may read, can be read all the same."""
    if os.access(file, os.R_OK, effective_ids=True):
        pytest.skip("permissions do not hold on this machine")
