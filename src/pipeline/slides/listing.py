"""The slides of a cohort: from a folder and a pattern, or from a slide table; and ``slides.tsv``, which says nothing of where they lie."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.files import matching
from pipeline.identifiers import check_id, chunk_of
from pipeline.machine import MachineError
from pipeline.slides.dicom import read_header
from pipeline.slides.filesets import MIRAX, series_of, slide_files
from pipeline.slides.provenance import set_fingerprint
from pipeline.tables import FIRST_ROW, numeric, read_table, write_table

log = logging.getLogger(__name__)

NEEDED = ["slide_id", "patient_id", "path", "mpp"]
COLUMNS = [*NEEDED, "md5"]
UID = re.compile(r"[0-2](\.(0|[1-9][0-9]*)){4,}")  # of DICOM: its first numbers name an organisation
NAME_PATIENTS = "Correct `slides.patient_id_pattern`, narrow `slides.pattern`, or list the slides in a slide table."


def list_slides(
    folder: str | Path | None = None, pattern: str = "*.svs", patient_regex: str = r"(.+)", table: str | Path | None = None
) -> pd.DataFrame:
    """The slides as a table sorted by slide_id: slide_id, patient_id, path, mpp (NaN = read it from the file), md5 (NaN = not known).

    Without `table`: every slide of `folder` with a file that matches the glob `pattern` (``**/*.svs`` looks into subfolders). The slide
    id is the file name without its suffix; of a DICOM series of several files it is the name of their folder below `folder` where that
    holds no other series, else the SeriesInstanceUID. The patient id is group 1 of `patient_regex` searched in it (default: the whole
    of it), but never the first numbers of a UID. Files that belong to another slide are none themselves.
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


def write_slides(
    slides: pd.DataFrame,
    path: str | Path,
    folder: str | Path,
    files: Callable[[Path], Sequence[Path]] | None = slide_files,
) -> None:
    """Write ``slides.tsv``: the slides of `list_slides`, their paths as seen from `folder`, and a fingerprint of their bytes.

    The table is therefore the same wherever the cohort lies, and another one when a slide changes. `files` gives all files of a slide; with
    None there are no fingerprints, nor is there one of a slide that is absent. Slides of the same bytes are said in the log.
    """
    prints = [_fingerprint(Path(slide), files) if files else "" for slide in slides["path"]]
    table = slides[COLUMNS].assign(path=[_as_seen_from(folder, Path(slide)) for slide in slides["path"]], fingerprint=prints)
    same = table[table["fingerprint"].duplicated(keep=False) & (table["fingerprint"] != "")]
    for _, twins in same.groupby("fingerprint", sort=False):
        log.warning("the slides %s have the same bytes: each counts as a slide of its own", ", ".join(twins["slide_id"]))
    write_table(table, path)


def read_slides(path: str | Path, folder: str | Path | None = None) -> pd.DataFrame:
    """``slides.tsv``; mpp as a number, and with `folder` the paths of the slides below it."""
    slides = read_table(path, NEEDED, patient_id="patient_id", unique=False)
    slides["mpp"] = numeric(slides, "mpp", path)
    if folder is not None:
        slides["path"] = [str(Path(folder) / slide) for slide in slides["path"]]
    return slides


def read_chunk(path: str | Path, chunk: int, chunks: int, folder: str | Path) -> pd.DataFrame:
    """The slides of one chunk of ``slides.tsv``, whose files lie below `folder`.

    Raises `MachineError` where the folder is absent or empty, and none of them lies elsewhere: its disk is not mounted.
    """
    slides = read_slides(path, folder)
    slides = slides[slides["slide_id"].map(lambda slide: chunk_of(slide, chunks)) == chunk].reset_index(drop=True)
    if len(slides) and not any(Path(slide).exists() for slide in slides["path"]) and not any(Path(folder).glob("*")):
        remedy = "Mount it again, or correct `slides.folder` and `data_dir`."
        raise MachineError("the folder of the slides is absent or empty", path=folder, remedy=remedy, everywhere=True)
    return slides


def _fingerprint(slide: Path, files: Callable[[Path], Sequence[Path]]) -> str:
    try:
        return set_fingerprint(files(slide))
    except InputError:  # absent, or no file that ends: it fails alone, and with a reason, when it is opened
        return ""


def _as_seen_from(folder: str | Path, path: Path) -> str:
    """`path` relative to `folder` where it lies below, or was named so."""
    for place, base in ((path, Path(folder)), (path.absolute(), Path(folder).absolute())):
        if place.is_relative_to(base):
            return place.relative_to(base).as_posix()
    return str(path)


def _files(folder: Path, pattern: str) -> dict[str, Path]:
    """slide id → file; raises `InputError` for two files of one id."""
    if not folder.is_dir():
        raise InputError("no such folder of slides", file=folder, remedy="Check `slides.folder` and `data_dir`.")
    files: dict[str, Path] = {}
    for slide_id, path in _slides(folder, matching(folder, pattern)):
        if slide_id in files:
            raise InputError(
                "two files have the same slide id",
                file=path,
                found=slide_id,
                expected=f"an id other than that of {files[slide_id]}",
                remedy="Rename one of them, or list the slides in a slide table.",
            )
        files[slide_id] = path
    return files


def _slides(folder: Path, found: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Id and file of each slide that has a file among those `found`."""
    sets = [slide_files(path) for path in found if not path.name.startswith(".")]
    sets = {files[0]: files for files in sets}  # a DICOM series is found by each of its files
    parts = {part for first, files in sets.items() if first.suffix.lower() != ".ndpis" for part in files[1:]}  # .ndpi are slides, too
    folders = {first.with_suffix("") for first in sets if first.suffix.lower() == MIRAX}
    for first, files in sets.items():
        if len(files) > 1 or (first not in parts and first.parent not in folders):
            yield _slide_id(first, len(files), folder), first


def _slide_id(first: Path, files: int, folder: Path) -> str:
    header = read_header(first) if files > 1 else None
    if header is None:
        return first.stem
    is_alone = first.parent != folder and len(series_of(first.parent)) == 1
    return first.parent.name if is_alone else header.series


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
    patients = {slide_id: _patient(regex, slide_id) for slide_id in files}
    strangers = [slide_id for slide_id, patient in patients.items() if not patient]
    uids = [slide_id for slide_id in strangers if UID.fullmatch(slide_id)]
    if len(strangers) == len(files):
        problem = "the names are DICOM UIDs, whose first numbers name no patient" if uids else "no patient id in any file name"
        expected = f"a match of {patient_regex!r}" + (" that is no beginning of a UID" if uids else "")
        raise InputError(problem, file=files[strangers[0]], found=strangers[0], expected=expected, remedy=NAME_PATIENTS)
    for slide_id in strangers:  # one odd file must not stop a cohort; without follow-up it ends in excluded.tsv
        what = f"a UID of DICOM ({slide_id}), whose first numbers name no patient" if slide_id in uids else "no patient id in the file name"
        log.warning("%s: %s; it is listed under its own name. %s", files[slide_id], what, NAME_PATIENTS)
    rows = []
    for slide_id, path in files.items():
        patient = patients[slide_id] or slide_id
        check_id(slide_id, "slide", file=path)
        rows.append((slide_id, check_id(patient, "patient", file=path), str(path), float("nan"), float("nan")))
    return pd.DataFrame(rows, columns=COLUMNS)


def _patient(regex: re.Pattern[str], slide_id: str) -> str | None:
    """The patient id in a slide's id; None where there is none, or only the beginning of a UID."""
    match = regex.search(slide_id)
    if not match or (match.start(1) == 0 and match[1] != slide_id and UID.fullmatch(slide_id)):
        return None
    return match[1]


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
