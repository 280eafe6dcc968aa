"""The few tags of a DICOM file's header that tell which slide it belongs to, read without trusting a length in it.

Explicit and implicit little endian (PS3.5, 7.1); what OpenSlide reads is one of the two.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGIC_AT, MAGIC = 128, b"DICM"
IMAGE_TYPE, TRANSFER_SYNTAX, SERIES = 0x00080008, 0x00020010, 0x0020000E
ITEM_END, SEQUENCE_END = 0xFFFEE00D, 0xFFFEE0DD
IMPLICIT, UNREADABLE = "1.2.840.10008.1.2", {"1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"}  # the last two: big endian, deflated
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # their length has four bytes
UNDEFINED = 0xFFFFFFFF
MOST_ELEMENTS, LONGEST_VALUE = 10_000, 1024


@dataclass(frozen=True)
class Header:
    """series: the SeriesInstanceUID. image_type: ``("ORIGINAL", "PRIMARY", "VOLUME", "NONE")``, say."""

    series: str
    image_type: tuple[str, ...] = ()

    @property
    def is_volume(self) -> bool:
        """Whether the file holds a level of the slide, and not its label or an overview."""
        return self.image_type[2:3] == ("VOLUME",)


def read_header(path: str | Path) -> Header | None:
    """The header of a DICOM file; None for any other file, and for one that names no series or is damaged before it does.

    Raises `OSError` when the file cannot be read.
    """
    with open(path, "rb") as handle:
        if handle.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] != MAGIC:
            return None
        try:
            return _Reader(handle).header()
        except (struct.error, ValueError):
            return None


class _Reader:
    """Walks over the elements of an open file, in order, at most `MOST_ELEMENTS` of them."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._left = handle, MOST_ELEMENTS

    def header(self) -> Header | None:
        explicit, values = True, {}
        while True:
            start = self._handle.tell()
            tag, kind, length = self._element(explicit)
            if tag >> 16 > 2 and explicit and values.get(TRANSFER_SYNTAX) == IMPLICIT:  # the first one after the file's own tags
                explicit = False
                self._handle.seek(start)
            elif tag > SERIES or values.get(TRANSFER_SYNTAX) in UNREADABLE:
                return None
            elif length == UNDEFINED:
                self._skip_sequence(explicit and kind != b"UN")
            elif tag in (IMAGE_TYPE, TRANSFER_SYNTAX, SERIES) and length <= LONGEST_VALUE:
                values[tag] = self._handle.read(length).decode("ascii").strip("\0 ")
                if tag == SERIES:
                    return Header(values[SERIES], tuple(values.get(IMAGE_TYPE, "").split("\\"))) if values[SERIES] else None
            else:
                self._handle.seek(length, 1)

    def _element(self, explicit: bool) -> tuple[int, bytes, int]:
        """Tag, kind of value (where it is told) and length of the next element, the handle at its value."""
        self._left -= 1
        if not self._left:
            raise ValueError("too many elements")
        group, number = self._unpack("<HH")
        tag, kind = group << 16 | number, b""
        if group == 0xFFFE or not explicit:
            return tag, kind, self._unpack("<I")[0]
        kind = self._handle.read(2)
        return tag, kind, self._unpack("<xxI")[0] if kind in LONG else self._unpack("<H")[0]

    def _skip_sequence(self, explicit: bool) -> None:
        """Go on behind a sequence of undefined length; what is nested in it is counted, not called."""
        ends = [SEQUENCE_END]  # of what is open: sequences and the items in them
        while ends:
            tag, kind, length = self._element(explicit)
            if tag == ends[-1]:
                ends.pop()
            elif length != UNDEFINED:
                self._handle.seek(length, 1)
            elif ends[-1] == SEQUENCE_END:  # an item
                ends.append(ITEM_END)
            else:
                ends.append(SEQUENCE_END)
                explicit = explicit and kind != b"UN"

    def _unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self._handle.read(struct.calcsize(form)))
