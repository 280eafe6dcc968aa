"""Manifests of the slide stage: which slides passed a stage, which failed, why, and how to mend it."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.slides.opening import UnreadableRegionError
from pipeline.tables import numeric, read_table, write_table

log = logging.getLogger(__name__)

OUTCOME = ["slide_id", "status", "reason", "remedy"]
MANIFEST = ["slide_id", "patient_id", "status", "stage", "reason", "remedy", "patches", "mpp", "mpp_source", "tissue_mm2", "features"]
EXCLUDED = ["kind", "id", "stage", "reason", "remedy"]
OK, FAILED = "ok", "failed"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def run_slides(
    stage: str, slides: pd.DataFrame, process: Callable[[dict], dict[str, object]], columns: Sequence[str], manifest: Path | str
) -> None:
    """Call `process` with every row of `slides` and write the manifest: slide_id, status, reason, remedy and `columns`.

    `process` returns a row's `columns`, and what else it wants in the log. What it raises fails that slide alone, except a lack of
    memory, a full disk and errors of the device (RuntimeError): they would meet every later slide too and are passed on.
    """
    from tqdm import tqdm

    rows = []
    for row in tqdm(slides.to_dict("records"), desc=stage, unit="slide", disable=not sys.stderr.isatty()):
        slide_id, start = row["slide_id"], time.perf_counter()
        try:
            found = process(row)
        except (MemoryError, RuntimeError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            rows.append({"slide_id": slide_id, "status": FAILED, **_explained(error, slide_id)})
            log.warning("%s, slide %s failed: %s", stage, slide_id, rows[-1]["reason"])
            continue
        rows.append({"slide_id": slide_id, "status": OK, **found})
        facts = ", ".join(f"{key} {value}" for key, value in found.items())
        log.info("%s, slide %s: %s; %.1f s", stage, slide_id, facts, time.perf_counter() - start)
    write_table(pd.DataFrame(rows, columns=[*OUTCOME, *columns]), manifest)


def _explained(error: Exception, slide_id: str) -> dict[str, str]:
    if isinstance(error, InputError):
        return {"reason": error.reason, "remedy": error.remedy}
    if not isinstance(error, (UnreadableRegionError, OSError)):
        log.exception("slide %s met an error that was not foreseen", slide_id)
    reason = " ".join(f"slide {slide_id}: {type(error).__name__}: {error}".split())
    return {"reason": reason, "remedy": "Check that the file was copied whole (size, checksum)."}


def read_passed(manifest: Path | str, numbers: Sequence[str]) -> pd.DataFrame:
    """The rows of a manifest with status ok, indexed by slide_id; the columns `numbers` as float."""
    table = read_table(manifest, [*OUTCOME, *numbers])
    if numbers:
        table[list(numbers)] = numeric(table, numbers, manifest)
    return table[table["status"] == OK].set_index("slide_id", drop=False)


def gather_manifests(
    slides: pd.DataFrame,
    tissue: Sequence[Path | str],
    patches: Sequence[Path | str],
    encoded: Sequence[Path | str],
    manifest: Path | str,
) -> pd.DataFrame:
    """Join the chunks' manifests of the three stages into one row a slide, in the order of `slides`, and write it.

    A slide's stage is the one it failed at, or ``encode``. Returns the failures as rows of excluded.tsv: kind, id, stage, reason,
    remedy. Raises `InputError` when a slide is in no manifest of the stage that it should have reached.
    """
    stages = {"tissue": _joined(tissue), "patches": _joined(patches), "encode": _joined(encoded)}
    rows = [_gathered(slide, stages) for slide in slides.to_dict("records")]
    table = pd.DataFrame(rows, columns=MANIFEST)
    write_table(table, manifest)
    failures = table[table["status"] == FAILED].rename(columns={"slide_id": "id"})
    return failures.assign(kind="slide")[EXCLUDED].reset_index(drop=True)


def _joined(manifests: Sequence[Path | str]) -> dict[str, dict]:
    """slide id → its row, with the folder of its manifest."""
    rows: dict[str, dict] = {}
    for path in manifests:
        for row in read_table(path, OUTCOME).to_dict("records"):
            rows[row["slide_id"]] = {**row, "folder": Path(path).parent}
    return rows


def _gathered(slide: dict, stages: dict[str, dict[str, dict]]) -> dict[str, object]:
    slide_id = slide["slide_id"]
    known: dict[str, object] = {}
    for stage, rows in stages.items():
        if slide_id not in rows:
            raise InputError(f"no manifest of the stage {stage!r} has this slide", slide=slide_id, remedy="Run its chunk again.")
        known |= {**rows[slide_id], "stage": stage}
        if known["status"] != OK:
            return {**known, "patient_id": slide["patient_id"]}
    features = os.path.relpath(Path(str(known["folder"])) / f"{slide_id}.h5")
    return {**known, "patient_id": slide["patient_id"], "features": features}
