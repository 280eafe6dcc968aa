"""What a file is, by its content: whatever its name says, and why it cannot be a slide."""

from __future__ import annotations

import logging
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.errors import InputError

log = logging.getLogger(__name__)

HEAD = 4096
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # by TIFF type; 1 for all others
SUB_DIRECTORIES = 330  # TIFF tag
CODESTREAM, BOXES = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "  # with which JPEG 2000 begins, bare or within boxes
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that state a size
PIECES = (273, 279, 324, 325)  # TIFF tags: offsets and lengths of strips, of tiles
PIECE_TYPES = {3: "u2", 4: "u4", 16: "u8"}
MAX_DIRECTORIES = 1_000  # of a TIFF: a scanner writes some dozens, a stack of planes some hundreds
MAX_SIDE = 2**20  # pixels: a slide of 75 mm has 750,000 at 0.1 µm
MAX_TILE = 2**28  # pixels of one tile, which OpenSlide decodes as a whole: some files of Hamamatsu have one tile a level
COPY_AGAIN = "Copy the file again from its source and compare size and checksum."
UNPACK = "Unpack it and name the slide inside."
DOWNLOAD = "Download the slide itself; the link or the login may have expired."
CONVERT = "Convert it to a tiled TIFF, with `bfconvert` of Bio-Formats say."
MAGIC: tuple[tuple[int, bytes, str, str], ...] = (  # offset, bytes there, what it is, remedy
    *((0, magic, "TIFF", "") for magic in TIFF_HEADS),
    (0, b"\x89PNG\r\n\x1a\n", "PNG", ""),
    (0, b"\xff\xd8\xff", "JPEG", ""),
    (0, b"BM", "BMP", ""),
    (0, b"PK\x03\x04", "a ZIP archive", UNPACK),
    (0, b"\x1f\x8b", "a gzip archive", UNPACK),
    (0, b"BZh", "a bzip2 archive", UNPACK),
    (0, b"\xfd7zXZ", "an xz archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"%PDF", "a PDF document", "Name the slide instead."),
    (0, b"version https://git-lfs", "a Git LFS pointer: the slide was not downloaded", "Run `git lfs pull`."),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", CONVERT),
    (0, b"\xd0\xcf\x11\xe0", "an OLE file (Zeiss ZVI, Olympus OIB)", CONVERT),
    (0, b"SIS\0", "an Olympus ETS file", CONVERT),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image without a scanner's header", "Convert it: `vips tiffsave IN OUT.tif --tile --pyramid`."),
    (0, b"RIFF", "a RIFF file (WebP image, video or sound)", CONVERT),
    (0, b"GIF8", "a GIF image", CONVERT),
    (
        128,
        b"DICM",
        "a DICOM file that OpenSlide does not take for a slide",
        "Name a VOLUME file of the series (VL Whole Slide Microscopy), all of its files in one folder.",
    ),
)


@dataclass(frozen=True)
class Signature:
    """kind: ``TIFF``, ``PNG``, ``JPEG``, ``BMP``, or a phrase such as ``"a ZIP archive"`` that comes with a remedy."""

    kind: str
    remedy: str = ""


def recognise(path: str | Path) -> Signature:
    """What the first bytes of a file say that it is. Raises `OSError` when they cannot be read."""
    with open(path, "rb") as handle:
        head = handle.read(HEAD)
    if not head:
        return Signature("empty", COPY_AGAIN)
    for offset, magic, kind, remedy in MAGIC:
        if head[offset:].startswith(magic):
            return Signature(kind, remedy)
    if not any(head):
        return Signature("zeros at its start: space was reserved but never written", COPY_AGAIN)
    return _text(head) or Signature(f"of no known format (first bytes: {head[:8].hex(' ')})", COPY_AGAIN)


def _text(head: bytes) -> Signature | None:
    """The signature of a file of text, None where it is none."""
    try:
        text = head.decode("utf-8").lstrip("\ufeff \t\r\n") if b"\0" not in head else ""
    except UnicodeDecodeError as error:
        text = head[: error.start].decode("utf-8") if error.start > HEAD - 4 else ""  # a character cut by the end of `head`
    if not text:
        return None
    start = text[:200].lower()
    if start.startswith(("<!doctype html", "<html")):
        return Signature("an HTML page: the download failed", DOWNLOAD)
    if start.startswith("<?xml") and "<error" in text.lower():
        return Signature("an XML error message: the download failed", DOWNLOAD)
    if start.startswith("{"):
        return Signature("JSON text (a server's answer?): the download failed", DOWNLOAD)
    return Signature(f"text, beginning with {text.splitlines()[0][:40]!r}", "Name the slide instead; if this is its name, copy it again.")


def truncation(path: str | Path, *, pixels: bool = True) -> str:
    """``"the file looks truncated: …"`` where a TIFF points beyond its own end, else an empty string.

    Its directories are followed, and with `pixels` its strips and tiles too.
    """
    size = Path(path).stat().st_size
    try:
        with open(path, "rb") as handle:
            needed = max(_reaches(handle, size, pixels), default=0)
    except (OSError, ValueError, struct.error) as error:  # garbage instead of a directory: nothing is known then
        log.debug("%s: %s", path, error)
        return ""
    return f"the file looks truncated: it should reach byte {needed} and has {size} bytes" if needed > size else ""


def check_directories(path: str | Path) -> None:
    """Raise `InputError` for a TIFF whose directories lead in a circle, or are more than any scanner writes: a reader follows them all.

    Nothing is said of a file that is no TIFF, or whose directories end in garbage: that is told by its reader.
    """
    with open(path, "rb") as handle:
        head = handle.read(16)
        if head[:4] not in TIFF_HEADS:
            return
        order, big = ("<" if head[:1] == b"I" else ">"), head[:4] in TIFF_HEADS[2:]
        count, entry, pointer = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
        seen: dict[int, int] = {}
        size = os.fstat(handle.fileno()).st_size
        try:
            (at,) = struct.unpack_from(pointer, head, 8 if big else 4)
            while 0 < at < size:
                if at in seen:
                    raise _endless(path, f"directory {len(seen)} leads back to directory {seen[at] + 1}", "each directory once")
                seen[at] = len(seen)
                (entries,) = struct.unpack(count, _bytes(handle, at, struct.calcsize(count)))
                planes = _sub_directories(_bytes(handle, at + struct.calcsize(count), min(entries, HEAD) * entry), order, big)
                if len(seen) + planes > MAX_DIRECTORIES:
                    raise _endless(path, f"more than {MAX_DIRECTORIES:,}", f"at most {MAX_DIRECTORIES:,}")
                next_at = at + struct.calcsize(count) + entries * entry
                if next_at >= size:
                    return
                (at,) = struct.unpack(pointer, _bytes(handle, next_at, struct.calcsize(pointer)))
        except (struct.error, OverflowError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            log.debug("%s: %s", path, error)


def check_extent(path: Path, dimensions: tuple[int, int], properties: Mapping[str, str]) -> None:
    """Raise `InputError` for a slide of absurd size, or one of whose tiles takes gigabytes to decode."""
    if max(dimensions) > MAX_SIDE:
        found, expected = "{} x {} pixels".format(*dimensions), f"at most {MAX_SIDE:,} a side"
        raise InputError("the slide has an absurd size", file=path, found=found, expected=expected, remedy=COPY_AGAIN)
    for name, width in properties.items():
        height = properties.get(name.replace("tile-width", "tile-height"), "") if name.endswith("tile-width") else ""
        if width.isdecimal() and height.isdecimal() and int(width) * int(height) > MAX_TILE:
            found, expected = f"{width} x {height} pixels", f"at most {MAX_TILE:,} pixels"
            raise InputError("a tile has an absurd size", file=path, found=found, expected=expected, remedy=COPY_AGAIN)


def _sub_directories(entries: bytes, order: str, big: bool) -> int:
    """How many directories a directory names beside the next one."""
    layout = struct.Struct(order + ("HHQ8x" if big else "HHI4x"))
    return sum(
        values for tag, _, values in layout.iter_unpack(entries[: len(entries) // layout.size * layout.size]) if tag == SUB_DIRECTORIES
    )


def _endless(path: str | Path, found: str, expected: str) -> InputError:
    problem, remedy = "cannot be opened as a slide (the directories of the TIFF)", COPY_AGAIN
    return InputError(problem, file=path, found=found, expected=expected, remedy=remedy)


def coded_size(stream: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG, JPEG 2000, WebP or PNG stream declares, asked before it is decoded; None where it does not tell."""
    if stream[:4] == CODESTREAM or stream[:8] == BOXES:
        return max((_codestream_size(stream, at.start()) for at in re.finditer(CODESTREAM, stream)), key=math.prod, default=None)
    if stream[:8] == b"\x89PNG\r\n\x1a\n":
        return struct.unpack(">2I", stream[16:24].ljust(8, b"\0"))
    if stream[:4] == b"RIFF":
        return _webp_size(stream.ljust(32, b"\0"))
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker in FRAMES:
            height, width = struct.unpack_from(">2H", stream, at + 5)
            return width, height
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big") if marker != 0xFF else 1
    return None


def _codestream_size(stream: bytes, at: int) -> tuple[int, int]:
    right, bottom, left, top = struct.unpack(">4I", stream[at + 8 : at + 24].ljust(16, b"\0"))
    return right - left, bottom - top


def _webp_size(stream: bytes) -> tuple[int, int]:
    if stream[12:16] == b"VP8X":
        return 1 + int.from_bytes(stream[24:27], "little"), 1 + int.from_bytes(stream[27:30], "little")
    if stream[12:16] == b"VP8L":
        bits = int.from_bytes(stream[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(stream[26:28], "little") & 0x3FFF, int.from_bytes(stream[28:30], "little") & 0x3FFF


def _reaches(handle: BinaryIO, size: int, pixels: bool) -> Iterator[int]:
    """The ends of all that the directories of a TIFF refer to, as bytes from its start; nothing for other files."""
    head = handle.read(16)
    if head[:4] not in TIFF_HEADS:
        return
    order, big = ("<" if head[:1] == b"I" else ">"), head[:4] in TIFF_HEADS[2:]
    count, entry, pointer = (order + "Q", order + "HHQQ", order + "Q") if big else (order + "H", order + "HHII", order + "I")
    (directory,) = struct.unpack_from(pointer, head, 8 if big else 4)
    seen: set[int] = set()
    while directory and directory not in seen and len(seen) < MAX_DIRECTORIES:
        seen.add(directory)
        first = directory + struct.calcsize(count)
        yield first
        if first > size:
            return
        (entries,) = struct.unpack(count, _bytes(handle, directory, struct.calcsize(count)))
        length = entries * struct.calcsize(entry)
        yield first + length + struct.calcsize(pointer)
        if first + length + struct.calcsize(pointer) > size:
            return
        arrays: dict[int, np.ndarray] = {}
        for tag, kind, values, at in struct.iter_unpack(entry, _bytes(handle, first, length)):
            occupied = values * TYPE_BYTES.get(kind, 1)
            inside = occupied <= struct.calcsize(pointer)  # the values stand in the directory itself
            if not inside:
                yield at + occupied
            if tag in PIECES and kind in PIECE_TYPES and (inside or at + occupied <= size):
                raw = struct.pack(pointer, at)[:occupied] if inside else _bytes(handle, at, occupied)
                arrays[tag] = np.frombuffer(raw, order + PIECE_TYPES[kind]).astype(np.int64)
        if pixels:
            yield from (int((arrays[a] + arrays[b]).max()) for a, b in (PIECES[:2], PIECES[2:]) if _match(arrays, a, b))
        (directory,) = struct.unpack(pointer, _bytes(handle, first + length, struct.calcsize(pointer)))


def _match(arrays: dict[int, np.ndarray], offsets: int, counts: int) -> bool:
    return offsets in arrays and counts in arrays and arrays[offsets].shape == arrays[counts].shape


def _bytes(handle: BinaryIO, at: int, length: int) -> bytes:
    handle.seek(at)
    return handle.read(length)
