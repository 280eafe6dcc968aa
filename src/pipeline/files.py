"""Writing that a kill cannot spoil, and digests of what was written."""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.jobs.run import hold
from pipeline.machine import machine_fault

KINDS = (  # of what is no regular file
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_file(path: str | Path, what: str = "file", *, expected: str | None = None, remedy: str = "") -> Path:
    """`path`, which is a regular file; `what` it should be stands in the message where there is none.

    Raises `InputError` for anything else, before opening it could wait for ever or never come to an end.
    """
    path = Path(path)
    if path.is_file():
        return path
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if fault := machine_fault(error, path):
            raise fault from error
        absent = "; it is a link to what is not there" if path.is_symlink() else ""
        raise InputError(f"no such {what}{absent}", file=path, expected=expected, remedy=remedy) from None
    found = next((name for is_kind, name in KINDS if is_kind(mode)), "no regular file")
    remedy = remedy or "Name a file that lies on a disk."
    raise InputError("is no regular file", file=path, found=found, expected=expected or f"a {what}", remedy=remedy)


def matching(folder: Path, pattern: str) -> list[Path]:
    """The regular files below `folder` that match the glob `pattern`, sorted. Raises `InputError` for a pattern that is none."""
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    except (NotImplementedError, ValueError) as error:  # what pathlib raises for an absolute pattern, an empty one, and `**.svs`
        remedy = "Name the folder in `slides.folder`, and in `slides.pattern` what lies below it."
        expected = "a pattern below the folder, such as **/*.svs"
        raise InputError(f"is no pattern of files ({error})", file=folder, found=pattern, expected=expected, remedy=remedy) from error


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is flushed to disk and renamed to `path`, on failure removed.

    The file gets the permissions that the umask leaves, whatever its writer gives it. The temporary name keeps the suffix (writers
    choose a format by it) and is unique, so that an orphaned job and its successor never write into each other's file. Raises
    `SupersededError`, and leaves `path` as it is, where another run has superseded the one that this job belongs to, and `MachineError`
    with `path` where the disk is full or the like.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _created(temporary)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # safetensors writes files that nobody else may read
            temporary.chmod(mode)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        hold()
        os.replace(temporary, path)
    except Exception as error:
        if fault := machine_fault(error, path):
            raise (fault.at(path) if fault.path == str(temporary) else fault) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _created(path: Path) -> int:
    """The permissions that a new file gets there, by the umask and the folder; made in passing, since asking for the umask sets it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes, read in blocks of 1 MiB."""
    return _digest(path, hashlib.sha256())


def md5(path: str | Path) -> str:
    """The same by MD5, in which archives of slides state their checksums: it finds damage, not forgery."""
    return _digest(path, hashlib.md5(usedforsecurity=False))


def _digest(path: str | Path, digest: hashlib._Hash) -> str:
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
