"""A seal at the end of a file, behind all that its format reads: damage is found before a library trusts what the file says of itself."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import BinaryIO

SEAL = b"\nslide2surv crc32 %08x\n"
LENGTH = len(SEAL % 0)
BLOCK = 1 << 20


def seal(path: str | Path) -> None:
    """Append the CRC-32 of all that the file holds. HDF5 passes over bytes behind its end."""
    with open(path, "rb+") as handle:
        checksum = _crc32(handle, handle.seek(0, os.SEEK_END))
        handle.write(SEAL % checksum)


def is_as_sealed(path: str | Path) -> bool | None:
    """Whether a file holds what it held when it was sealed; None where it has no seal. Raises `OSError` when it cannot be read."""
    with open(path, "rb") as handle:
        size = handle.seek(0, os.SEEK_END) - LENGTH
        if size < 0:
            return None
        handle.seek(size)
        found = handle.read(LENGTH)
        if not found.startswith(SEAL[: SEAL.index(b"%")]):
            return None
        return found == SEAL % _crc32(handle, size)


def sealed_checksum(path: str | Path) -> str:
    """The checksum that a sealed file states (8 hex digits), not proven: it tells one content from another. Empty without a seal."""
    with open(path, "rb") as handle:
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - LENGTH))
        found = handle.read()
    return found.split()[-1].decode() if found.startswith(SEAL[: SEAL.index(b"%")]) else ""


def _crc32(handle: BinaryIO, length: int) -> int:
    """Of the first `length` bytes; the handle then stands behind them."""
    handle.seek(0)
    checksum, block = 0, memoryview(bytearray(BLOCK))
    while length > 0 and (count := handle.readinto(block[: min(length, BLOCK)])):  # type: ignore[attr-defined]
        checksum = zlib.crc32(block[:count], checksum)
        length -= count
    return checksum
