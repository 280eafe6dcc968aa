"""How much one file may declare: judged before memory is taken, so that one input never costs its neighbours.

A file of a kilobyte can declare gigabytes: a header that lies, parts that were never written, zeros packed to nothing. Whoever opens a
format asks here what it declares against what the file holds. docs/architecture.md lists the limits.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.amounts import gigabytes
from pipeline.errors import InputError

SMALL = 2**26  # bytes that anything may declare, however small its file is: 64 MiB (this and all below are our choice)
UNPACKING = 64  # times its stored bytes that an array may declare: measured numbers pack to a half or a tenth, not to a hundredth
MOST_PACKED = 2**33  # bytes that a packed array may declare: 8 GiB
DEFLATE = 1032  # the most bytes that deflate unpacks one to
PIXELS_A_BYTE = 8 * DEFLATE  # the most that a byte of a picture can hold: a pixel takes a bit
SMALL_PICTURE = 2**24  # pixels that any picture may have
MOST_TEXT = 2**28  # bytes of a text that is read as a whole (contours; configuration has less): 256 MiB
UNPACKING_TEXT = 200  # times its packed bytes that a table may have
SMALL_TABLE = 2**27  # bytes that any packed table may have: 128 MiB
MOST_LINE = 2**26  # characters of a line
MOST_COLUMNS = 500_000
MOST_CELLS = 2**25  # of a table that is held as text, where a row counts for eight of them


def check_declared(
    what: str, declared: int, stored: int, file: str | Path, *, shape: object = None, remedy: str = "", limit: int = MOST_PACKED
) -> None:
    """Raise `InputError` where `what` of `file` declares more bytes than those that are stored for it can hold.

    Bytes that are all there are always taken; packed ones may declare 64 times as much, up to `limit`. shape: told beside the bytes.
    """
    most = max(SMALL, stored, min(UNPACKING * stored, limit))
    if declared > most:
        raise InputError(
            f"{what} declares more than the file holds",
            file=file,
            found=f"{shape}, {gigabytes(declared)}" if shape is not None else gigabytes(declared),
            expected=f"at most {gigabytes(most)} for {stored:,} stored bytes",
            remedy=remedy,
        )


def check_pixels(
    what: str, size: tuple[int, int], stored: int, file: str | Path, *, most: int, remedy: str = "", slide: str | None = None
) -> None:
    """Raise `InputError` where a picture of `size` (width, height) has more than `most` pixels, or more than `stored` bytes can hold."""
    pixels = size[0] * size[1]
    fits = max(SMALL_PICTURE, PIXELS_A_BYTE * stored)
    if pixels > min(most, fits):
        raise InputError(
            f"{what} declares more pixels than the file holds"
            if pixels > fits
            else f"{what} has to be decoded whole and is too large for that",
            file=file,
            slide=slide,
            found=f"{size[0]} × {size[1]} pixels" + (f" in {stored:,} bytes" if pixels > fits else ""),
            expected=f"at most {min(most, fits)} pixels",
            remedy=remedy,
        )
