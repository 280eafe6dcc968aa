"""Diagnostic slides of TCGA from the Genomic Data Commons: a manifest by its API, then the files, each proven by its MD5.

API: https://docs.gdc.cancer.gov/API/Users_Guide (endpoints ``files`` and ``data``).
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import tables
from pipeline.errors import InputError
from pipeline.identifiers import check_id
from pipeline.machine import Faults, MachineError
from pipeline.retrieve.client import Client, UnreachableError
from pipeline.retrieve.part import PassingError
from pipeline.retrieve.source import write_origin

log = logging.getLogger(__name__)

COLUMNS = ("id", "filename", "md5", "size", "state", "patient_id")  # the first five are those of gdc-client
STATUS = ("file_id", "filename", "patient_id", "status", "reason", "remedy", "bytes")
FIELDS = ("file_id", "file_name", "md5sum", "file_size", "state", "cases.submitter_id")
PAGE, MOST_FILES = 500, 100_000  # files of an answer; of all answers, a tenfold of TCGA
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MD5 = re.compile(r"[0-9a-f]{32}")
ENDING = ".svs"
REPORT = "Run it again; if it stays, the archive has changed: please report it."


def slide_filter(projects: Sequence[str]) -> dict[str, Any]:
    """The API's filter for the open-access diagnostic slides (formalin-fixed, the ones that models use) of TCGA projects."""
    wanted = {
        "cases.project.project_id": [f"TCGA-{project.upper()}" for project in projects],
        "files.access": ["open"],
        "files.data_format": ["SVS"],
        "files.experimental_strategy": ["Diagnostic Slide"],
    }
    return {"op": "and", "content": [{"op": "in", "content": {"field": key, "value": value}} for key, value in wanted.items()]}


def write_manifest(base: str, projects: Sequence[str], path: str | Path, client: Client) -> pd.DataFrame:
    """Ask the GDC for the slides of `projects` (``["blca"]``) and write the manifest: `COLUMNS`, sorted by file name.

    gdc-client reads it too. Raises `InputError` when there is no slide, when the pages do not fit together, and for a file id, file
    name, checksum, size or patient id that is none: nothing from the server becomes a path unchecked.
    """
    url = f"{base}/files"
    hits = _all_hits(url, slide_filter(projects), client)
    if not hits:
        remedy = "Check the project: a short name of TCGA such as blca, or a cohort under `retrieve.projects`."
        raise InputError(f"the GDC has no open diagnostic slide of {', '.join(projects)}", found="0 files", remedy=remedy)
    rows = [_row(hit, url) for hit in hits]
    manifest = pd.DataFrame(rows, columns=COLUMNS).sort_values("filename", ignore_index=True)
    _check_unique(manifest, url, REPORT)
    tables.write_table(manifest, path)
    write_origin(path, url=url, projects=list(projects), slides=len(manifest))
    return manifest


def _check_unique(manifest: pd.DataFrame, file: str | Path, remedy: str) -> None:
    for column in ("id", "filename"):
        twice = manifest[column][manifest[column].duplicated()]
        if len(twice):
            raise InputError(f"{column} appears twice", file=file, found=twice.iloc[0], expected="each once", remedy=remedy)


def _all_hits(url: str, filters: Mapping[str, Any], client: Client) -> list[Mapping[str, Any]]:
    """All pages of a query, sorted by file id so that pages do not overlap."""
    hits: list[Mapping[str, Any]] = []
    while True:
        body = {"filters": filters, "fields": ",".join(FIELDS), "format": "JSON", "sort": "file_id:asc", "from": len(hits), "size": PAGE}
        answer = client.json(url, body=body)
        try:
            page, total = answer["data"]["hits"], int(answer["data"]["pagination"]["total"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                "unknown form of answer", file=url, found=str(answer)[:80], expected="data.hits, data.pagination.total"
            ) from error
        if total > MOST_FILES:
            raise InputError("the answer names too many files", file=url, found=f"{total:,}", expected=f"at most {MOST_FILES:,}")
        hits += page
        if len(hits) >= total or not page:
            break
    if len(hits) != total:
        raise InputError("the pages of the answer do not fit together", file=url, found=f"{len(hits)} files", expected=total, remedy=REPORT)
    return hits


def _row(hit: Mapping[str, Any], url: str) -> tuple[Any, ...]:
    """One row of the manifest, every cell checked."""
    try:
        cases = [case["submitter_id"] for case in hit["cases"]]
        row = (hit["file_id"], hit["file_name"], hit["md5sum"], hit["file_size"], hit["state"], *cases)
    except (KeyError, TypeError) as error:
        raise InputError("unknown form of answer", file=url, found=str(hit)[:80], expected=", ".join(FIELDS)) from error
    return _checked(row, file=url)


def _checked(row: Sequence[Any], file: str | Path, number: int | None = None) -> tuple[Any, ...]:
    file_id, name, digest, size, state, *patients = row
    if not UUID.fullmatch(str(file_id)):
        raise InputError("not a file id of the GDC", file=file, row=number, column="id", found=file_id, expected="a UUID, lower case")
    check_id(str(name), "slide file", file=file, row=number, column="filename")
    if not str(name).lower().endswith(ENDING):
        raise InputError("not a slide", file=file, row=number, column="filename", found=name, expected=f"a name that ends in {ENDING}")
    if not MD5.fullmatch(str(digest)):
        raise InputError("not a checksum", file=file, row=number, column="md5", found=digest, expected="32 hex digits")
    if not str(size).isdecimal() or int(size) == 0:
        raise InputError("not a size", file=file, row=number, column="size", found=size, expected="bytes, at least 1")
    if len(patients) != 1:
        raise InputError(f"file {name} belongs to {len(patients)} patients", file=file, row=number, expected="one patient a slide")
    check_id(str(patients[0]), "patient", file=file, row=number, column="patient_id")
    return str(file_id), str(name), str(digest), int(size), str(state), str(patients[0])


def read_manifest(path: str | Path) -> pd.DataFrame:
    """A manifest as `write_manifest` writes it, every cell checked again, since a person may have cut it to fewer slides."""
    table = tables.read_table(path, COLUMNS)
    cells = table[list(COLUMNS)].astype(object).where(table[list(COLUMNS)].notna(), "")
    rows = [_checked(row, path, number) for number, row in enumerate(cells.itertuples(index=False), start=tables.FIRST_ROW)]
    manifest = pd.DataFrame(rows, columns=COLUMNS)
    _check_unique(manifest, path, "Remove one of the rows.")
    return manifest


def chunk_of(file_id: str, chunks: int) -> int:
    """The job that fetches a file; it does not depend on which other files there are."""
    return zlib.crc32(file_id.encode()) % chunks


def download_slides(
    base: str, manifest: str | Path, folder: str | Path, table: str | Path, client: Client, *, chunk: int = 0, chunks: int = 1
) -> pd.DataFrame:
    """Fetch the slides of one chunk of `manifest` into `folder`, one by one, and write `table` (`STATUS`), a row a slide.

    Chunks may run side by side. A slide that is there with its size and the MD5 noted in its ``.source.yaml`` is not read again. One
    that cannot be had (refused, or not what was stated) is a row with reason and remedy, and the others go on. So they do after a failure
    that passes, and then `MachineError` is raised in place of the table; when the server does not answer at all, the job stops with that
    `InputError`. What has come is kept, parts of slides too.
    """
    slides = read_manifest(manifest)
    slides = slides[[chunk_of(file_id, chunks) == chunk for file_id in slides["id"]]].sort_values("filename")
    faults = Faults("slides", len(slides))
    rows = [_one(base, row, Path(folder), client, faults) for row in slides.itertuples(index=False)]
    faults.check()
    status = pd.DataFrame(rows, columns=STATUS)
    failed = int((status["status"] == "failed").sum())
    log.info("%d of %d slides are there, %d could not be had", len(status) - failed, len(status), failed)
    tables.write_table(status, table)
    return status


def _one(base: str, slide: Any, folder: Path, client: Client, faults: Faults) -> tuple[Any, ...]:
    """The row of one slide; what passes is noted in `faults`."""
    known = (slide.id, slide.filename, slide.patient_id)
    try:
        source = client.download(f"{base}/data/{slide.id}", folder / slide.filename, size=slide.size, digest=slide.md5)
    except UnreachableError:
        raise
    except InputError as error:
        log.warning("%s", error)
        if isinstance(error.__cause__, PassingError):
            faults.add(slide.filename, MachineError("the server did not give it", path=error.file, remedy=error.remedy))
        return (*known, "failed", error.reason, error.remedy, 0)
    return (*known, "ok", "", "", source.size)


def join_chunks(parts: Sequence[str | Path], table: str | Path) -> pd.DataFrame:
    """Join the tables of the chunks; raises `InputError` when not one slide could be had."""
    status = pd.concat([tables.read_table(part, STATUS) for part in parts], ignore_index=True).fillna("")
    status = status.sort_values("filename", ignore_index=True)
    if not (status["status"] == "ok").any():
        first = status.iloc[0] if len(status) else {"reason": "the manifest is empty", "remedy": ""}
        raise InputError(f"no slide could be had; the first: {first['reason']}", file=table, remedy=first["remedy"])
    tables.write_table(status, table)
    return status
