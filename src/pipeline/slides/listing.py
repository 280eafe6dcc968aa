"""The slides of a cohort: from a folder and a pattern, or from a slide table."""

from __future__ import annotations

import logging
import re
import zlib
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.identifiers import check_id
from pipeline.tables import FIRST_ROW, numeric, read_table

log = logging.getLogger(__name__)

NEEDED = ["slide_id", "patient_id", "path", "mpp"]
COLUMNS = [*NEEDED, "md5"]


def list_slides(
    folder: str | Path | None = None, pattern: str = "*.svs", patient_regex: str = r"(.+)", table: str | Path | None = None
) -> pd.DataFrame:
    """The slides as a table sorted by slide_id: slide_id, patient_id, path, mpp (NaN = read it from the file), md5 (NaN = not known).

    Without `table`: every file of `folder` that matches the glob `pattern` (``**/*.svs`` looks into subfolders); the slide id is
    the file name without its suffix, the patient id group 1 of `patient_regex` searched in it (default: the whole of it).
    With `table` (TSV: slide_id, patient_id, optionally file, mpp, md5): only its slides; `file` is relative to `folder` (default: the
    table's own), and where it is empty the file of `folder` with that slide id is taken. A file that is absent stays in the list,
    to fail alone and with a reason. Raises `InputError` for unsafe or repeated ids, a bad pattern, or no slide at all.
    """
    if table is None:
        if folder is None:
            raise InputError("neither a folder nor a table of slides is given", remedy="Set `slides.folder` or `slides.table`.")
        found = _from_folder(Path(folder), pattern, patient_regex)
    else:
        found = _from_table(Path(table), Path(folder) if folder is not None else Path(table).parent, pattern)
    return found[COLUMNS].sort_values("slide_id", ignore_index=True)


def read_slides(path: str | Path) -> pd.DataFrame:
    """``slides.tsv`` as written from `list_slides`; mpp as a number."""
    slides = read_table(path, NEEDED, patient_id="patient_id", unique=False)
    slides["mpp"] = numeric(slides, "mpp", path)
    return slides


def read_chunk(path: str | Path, chunk: int, chunks: int) -> pd.DataFrame:
    """The slides of one chunk of ``slides.tsv``."""
    slides = read_slides(path)
    return slides[slides["slide_id"].map(lambda slide: chunk_of(slide, chunks)) == chunk].reset_index(drop=True)


def chunk_of(slide_id: str, chunks: int) -> int:
    """The chunk of a slide. It does not depend on which other slides there are, so a new slide makes one chunk run again."""
    return zlib.crc32(slide_id.encode()) % chunks


def _files(folder: Path, pattern: str) -> dict[str, Path]:
    """slide id → file; raises `InputError` for two files of one id."""
    if not folder.is_dir():
        raise InputError("no such folder of slides", file=folder, remedy="Check `slides.folder` and `data_dir`.")
    files: dict[str, Path] = {}
    for path in sorted(folder.glob(pattern)):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in files:
            raise InputError(
                "two files have the same slide id",
                file=path,
                found=path.stem,
                expected=f"an id other than that of {files[path.stem]}",
                remedy="Rename one of them, or list the slides in a slide table.",
            )
        files[path.stem] = path
    return files


def _from_folder(folder: Path, pattern: str, patient_regex: str) -> pd.DataFrame:
    try:
        regex = re.compile(patient_regex)
    except re.error as error:
        raise InputError(f"not a regular expression ({error})", column="patient_regex", found=patient_regex) from error
    if regex.groups < 1:
        raise InputError("has no group", column="patient_regex", found=patient_regex, expected="one group (…) around the patient id")
    files = _files(folder, pattern)
    if not files:
        raise InputError("no slide found", file=folder, expected=f"files that match {pattern!r}", remedy="Check `slides.pattern`.")
    matches = {slide_id: regex.search(slide_id) for slide_id in files}
    strangers = [slide_id for slide_id, match in matches.items() if not match or not match[1]]
    if len(strangers) == len(files):
        raise InputError(
            "no patient id in any file name",
            file=files[strangers[0]],
            found=strangers[0],
            expected=f"a match of {patient_regex!r}",
            remedy="Correct `slides.patient_id_pattern`, narrow `slides.pattern`, or list the slides in a slide table.",
        )
    for slide_id in strangers:  # one odd file must not stop a cohort; without follow-up it ends in excluded.tsv
        log.warning("%s: no patient id in the file name; it is listed under its own name", files[slide_id])
    rows = []
    for slide_id, path in files.items():
        patient = slide_id if slide_id in strangers else matches[slide_id][1]
        check_id(slide_id, "slide", file=path)
        rows.append((slide_id, check_id(patient, "patient", file=path), str(path), float("nan"), float("nan")))
    return pd.DataFrame(rows, columns=COLUMNS)


def _from_table(table: Path, folder: Path, pattern: str) -> pd.DataFrame:
    slides = read_table(table, ["slide_id"], patient_id="patient_id", unique=False)
    if slides.empty:
        raise InputError("no slide found", file=table, expected="one row a slide")
    for row, value in enumerate(slides["slide_id"], start=FIRST_ROW):
        check_id("" if pd.isna(value) else value, "slide", file=table, row=row, column="slide_id")
    repeated = slides["slide_id"].duplicated()
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        found = slides["slide_id"].iloc[row]
        raise InputError("slide appears twice", file=table, row=row + FIRST_ROW, column="slide_id", found=found, expected="one row a slide")
    slides["mpp"] = _resolutions(slides, table)
    slides["md5"] = slides["md5"].str.lower() if "md5" in slides else float("nan")
    named = slides["file"] if "file" in slides else pd.Series(float("nan"), index=slides.index)
    files = _files(folder, pattern) if named.isna().any() else {}
    slides["path"] = [
        str(files.get(slide_id, folder / slide_id) if pd.isna(file) else folder / file)
        for slide_id, file in zip(slides["slide_id"], named, strict=True)
    ]
    return slides


def _resolutions(slides: pd.DataFrame, table: Path) -> pd.Series:
    if "mpp" not in slides:
        return pd.Series(float("nan"), index=slides.index)
    values = numeric(slides, "mpp", table)["mpp"]
    if (values <= 0).any():
        row = int((values <= 0).to_numpy().argmax())
        raise InputError(
            "resolution is not positive",
            file=table,
            row=row + FIRST_ROW,
            column="mpp",
            found=slides["mpp"].iloc[row],
            expected="µm per pixel, above 0, or an empty cell",
        )
    return values
