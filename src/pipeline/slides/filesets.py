"""All the files of a slide: most slides are one, those of Mirax, Hamamatsu (VMS, VMU, NDPIS) and DICOM are many."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pipeline.slides.dicom import MAGIC, MAGIC_AT, Header, read_header

HEAD = 4096
LONGEST_TEXT = 1 << 20  # bytes of a text that names files, as far as OpenSlide reads it
MIRAX = ".mrxs"
MIRAX_NAMES = re.compile(r"(?m)^\s*(?:FILE_\d+|INDEXFILE)\s*=\s*(.+?)\s*$")
HAMAMATSU = re.compile(rb"(?m)^\s*\[(?:(?:Uncompressed )?Virtual Microscope Specimen|NanoZoomer Digital Pathology Image Set)\]")
HAMAMATSU_NAMES = re.compile(r"(?m)^\s*(?:ImageFile|MapFile|OptimisationFile|MacroImage|Image\d)[^=\n]*=\s*(.+?)\s*$")


def slide_files(path: str | Path) -> tuple[Path, ...]:
    """All files of the slide that `path` names or belongs to as a DICOM file, the one to open first; absent ones that it names too.

    Mirax: the ``.mrxs`` file, ``Slidedat.ini`` in the folder of the same name, and the index and data files that it names. Hamamatsu:
    the text and the images that it names. DICOM: the files of the same folder and SeriesInstanceUID. Any other file stands alone.
    Raises `OSError` when a file that tells the others cannot be read; an absent `path` stands alone.
    """
    path = Path(path)
    if not path.is_file():
        return (path,)
    if path.suffix.lower() == MIRAX:
        return path, *_mirax(path.with_suffix(""))
    with open(path, "rb") as handle:
        head = handle.read(HEAD)
    if head[MAGIC_AT:].startswith(MAGIC):
        return _series(path)
    if HAMAMATSU.search(head):
        return path, *_named(path, HAMAMATSU_NAMES)
    return (path,)


def _mirax(folder: Path) -> Iterator[Path]:
    index = folder / "Slidedat.ini"
    yield index
    if index.is_file():
        yield from _named(index, MIRAX_NAMES)


def _named(text: Path, names: re.Pattern[str]) -> list[Path]:
    """The files beside `text` that it names, each once."""
    with open(text, "rb") as handle:
        content = handle.read(LONGEST_TEXT).decode("utf-8-sig", errors="surrogateescape")
    return [text.parent / name for name in dict.fromkeys(names.findall(content)) if "\0" not in name]


def _series(path: Path) -> tuple[Path, ...]:
    """The files of a DICOM file's series, those with pixels of the slide first."""
    series = next((files for files in series_of(path.parent).values() if path in files), ())
    return series or (path,)


def series_of(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each DICOM series in a folder (not below it) by SeriesInstanceUID, in the order of `slide_files`."""
    found: dict[str, list[tuple[bool, Path]]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            state = path.stat()
            header = _header(path, state.st_size, state.st_mtime_ns)
            if header:
                found.setdefault(header.series, []).append((not header.is_volume, path))
    return {series: tuple(path for _, path in sorted(files)) for series, files in found.items()}


@lru_cache(maxsize=100_000)  # a folder of many series is asked for by each of its slides
def _header(path: Path, size: int, mtime_ns: int) -> Header | None:
    return read_header(path)
