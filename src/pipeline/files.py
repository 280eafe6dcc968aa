"""Writing that a kill cannot spoil, and digests of what was written."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is flushed to disk and renamed to `path`, on failure removed.

    The temporary name keeps the suffix (writers choose a format by it) and is unique, so that an orphaned job and its
    successor never write into each other's file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
