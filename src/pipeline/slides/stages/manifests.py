"""Manifests of the slide stage: which slides passed a stage, which failed, why, and how to mend it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import InputError
from pipeline.jobs.run import hold
from pipeline.machine import Faults, MachineError
from pipeline.slides.filesets import slide_files
from pipeline.slides.overlay import contact_sheet
from pipeline.slides.provenance import ABSENT, set_fingerprint
from pipeline.slides.quality import FIGURES
from pipeline.slides.stages.supervision import Failure, Process, supervise
from pipeline.tables import numeric, read_table, write_table

log = logging.getLogger(__name__)

TISSUE = ["mpp", "mpp_source", "objective_power", "width", "height", "tissue_source", *FIGURES]
OUTCOME = ["slide_id", "status", "reason", "remedy"]
MANIFEST = ["slide_id", "patient_id", "status", "stage", "reason", "remedy", "patches", "mpp", "mpp_source", "tissue_mm2", "features"]
MANIFEST += ["checksum"]  # of the features: whoever trains on them sees that they are others
QUALITY = ["slide_id", "patient_id", "status", "stage", "reason", *TISSUE, "patches"]
EXCLUDED = ["kind", "id", "stage", "reason", "remedy"]
OK, FAILED = "ok", "failed"
PUBLISHED = "manifest.tsv"  # of a chunk's features, in their folder
CHUNK = re.compile(r"chunk\d+(\.tsv)?")
PATIENCE = 1800.0  # seconds


def run_slides(
    stage: str,
    slides: pd.DataFrame,
    process: Process,
    columns: Sequence[str],
    manifest: Path | str,
    patience: float = PATIENCE,
    files: Callable[[Path], Sequence[Path]] = slide_files,
) -> None:
    """Call `process` with every row of `slides` and write the manifest: slide_id, status, reason, remedy and `columns`.

    `process` returns a row's `columns`, and what else it wants in the log; it runs in a child process. What it raises, and a crash or a
    silence of `patience` seconds, fails that slide alone; what would meet every later slide too is raised (see `supervise`). A fault of the
    machine is no row: the other slides are done, and then `MachineError` is raised in place of the manifest. Such is also a slide whose
    `files` are not as they were listed (`fingerprint`, where `slides` has it).
    """
    from tqdm import tqdm

    records = slides.to_dict("records")
    outcomes = supervise(records, _as_listed(process, files), patience)
    rows, faults, start = [], Faults("slides", len(records)), time.perf_counter()
    for row, found in zip(tqdm(records, desc=stage, unit="slide", disable=not sys.stderr.isatty()), outcomes, strict=True):
        slide_id = row["slide_id"]
        if isinstance(found, MachineError):
            if found.path is not None and Path(found.path).is_relative_to(Path(manifest).parent):
                raise found  # what all slides are written to
            faults.add(slide_id, found)
            log.warning("%s, slide %s was not done: %s", stage, slide_id, found)
        elif isinstance(found, Failure):
            rows.append({"slide_id": slide_id, "status": FAILED, **found})
            log.warning("%s, slide %s failed: %s", stage, slide_id, found["reason"])
        else:
            rows.append({"slide_id": slide_id, "status": OK, **found})
            facts = ", ".join(f"{key} {value}" for key, value in found.items() if value is not None)
            log.info("%s, slide %s (%d of %d): %s; %.1f s", stage, slide_id, len(rows), len(records), facts, time.perf_counter() - start)
        start = time.perf_counter()
    faults.check()
    write_table(pd.DataFrame(rows, columns=[*OUTCOME, *columns]), manifest)


def _as_listed(process: Process, files: Callable[[Path], Sequence[Path]]) -> Process:
    """`process`, which raises `MachineError` where a slide is not what it was when the slides were listed."""

    def checked(row: dict) -> dict[str, object]:
        listed = row.get("fingerprint")
        if isinstance(listed, str) and listed:
            try:
                found = set_fingerprint(files(Path(row["path"])))
            except (FileNotFoundError, NotADirectoryError, InputError):
                found = ABSENT
            if found != listed:
                problem = "is gone since the slides were listed" if found == ABSENT else "was changed since the slides were listed"
                raise MachineError(problem, path=row["path"], remedy="Mount or copy it again; let nothing write to slides during a run.")
        return process(row)

    return checked


def read_passed(manifest: Path | str, numbers: Sequence[str]) -> pd.DataFrame:
    """The rows of a manifest with status ok, indexed by slide_id; the columns `numbers` as float."""
    table = read_table(manifest, [*OUTCOME, *numbers])
    if numbers:
        table[list(numbers)] = numeric(table, numbers, manifest)
    return table[table["status"] == OK].set_index("slide_id", drop=False)


def publish_features(manifest: Path | str, folder: Path | str) -> None:
    """A chunk as one output: `folder` with its manifest (``manifest.tsv``) and the files of features of its slides.

    The files are hard links into the folder of `manifest`, where they are made and skipped when valid; Snakemake does not know that one,
    so a failed or a repeated job loses none of them. `folder` is what it knows, and may share with other workflows (``--cache``).
    """
    manifest, folder = Path(manifest), Path(folder)
    filling = folder.with_name(f".{folder.name}.filling")
    shutil.rmtree(filling, ignore_errors=True)
    filling.mkdir(parents=True)
    for row in read_table(manifest, OUTCOME).to_dict("records"):
        for file in (f"{row['slide_id']}.h5", f"{row['slide_id']}.unreadable.tsv"):
            if row["status"] == OK and (manifest.parent / file).exists():
                _link(manifest.parent / file, filling / file)
    shutil.copyfile(manifest, filling / PUBLISHED)
    hold()
    shutil.rmtree(folder, ignore_errors=True)
    filling.rename(folder)


def drop_other_chunks(chunks: Iterable[Path | str]) -> None:
    """Remove from the folders of `chunks`, manifests or folders of features, those of an earlier number of chunks: others read them all."""
    kept: dict[Path, set[str]] = defaultdict(set)
    for chunk in map(Path, chunks):
        kept[chunk.parent].add(chunk.stem)
    for folder, names in kept.items():
        for path in folder.glob("chunk*"):
            if CHUNK.fullmatch(path.name) and path.stem not in names:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _link(file: Path, place: Path) -> None:
    """A second name of `file`, or a copy where the disk has no hard links."""
    try:
        place.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, place)


def gather_manifests(
    slides: pd.DataFrame,
    tissue: Sequence[Path | str],
    patches: Sequence[Path | str],
    encoded: Sequence[Path | str],
    manifest: Path | str,
) -> pd.DataFrame:
    """Join the chunks' manifests of the three stages into one row a slide, in the order of `slides`, and write it.

    `encoded` are the folders of `publish_features`. A slide's stage is the one it failed at, or the last. A cohort that starts from
    features made elsewhere has manifests of the stage ``import`` alone. Returns the failures as rows of excluded.tsv: kind, id, stage,
    reason, remedy. Raises `InputError` when a slide is in no manifest of the stage that it should have reached.
    """
    published = [Path(folder) / PUBLISHED for folder in encoded]
    stages = _stages(tissue=tissue, patches=patches, **{"encode" if tissue else "import": published})
    rows = []
    for slide in slides.to_dict("records"):
        known = _known(slide, stages)
        if known["status"] == OK:
            known["features"] = os.path.relpath(Path(str(known["folder"])) / f"{slide['slide_id']}.h5")
        rows.append(known)
    table = pd.DataFrame(rows, columns=MANIFEST)
    write_table(table, manifest)
    failures = table[table["status"] == FAILED].rename(columns={"slide_id": "id"})
    return failures.assign(kind="slide")[EXCLUDED].reset_index(drop=True)


def gather_quality(
    slides: pd.DataFrame, tissue: Sequence[Path | str], patches: Sequence[Path | str], table: Path | str, sheets: Path | str
) -> None:
    """One row a slide with the figures of its quality into `table`, and contact sheets of the overlays with ids and flags into `sheets`."""
    stages = _stages(tissue=tissue, patches=patches)
    rows = [_known(slide, stages) for slide in slides.to_dict("records")]
    write_table(pd.DataFrame(rows, columns=QUALITY), table)
    overlays = [Path(str(stages["tissue"][row["slide_id"]]["folder"])) / f"{row['slide_id']}.png" for row in rows]
    flags = ["" if pd.isna(row.get("flags")) else str(row["flags"]) for row in rows]
    flags = [flag if row["status"] == OK else f"failed: {row['stage']}" for row, flag in zip(rows, flags, strict=True)]
    contact_sheet(overlays, [row["slide_id"] for row in rows], Path(sheets) / "sheet.jpg", flags)


def _stages(**manifests: Sequence[Path | str]) -> dict[str, dict[str, dict]]:
    """Stage → slide id → row, of the stages that the cohort has."""
    return {stage: _joined(paths) for stage, paths in manifests.items() if paths}


def _joined(manifests: Sequence[Path | str]) -> dict[str, dict]:
    """slide id → its row, with the folder of its manifest."""
    rows: dict[str, dict] = {}
    for path in manifests:
        for row in read_table(path, OUTCOME).to_dict("records"):
            rows[row["slide_id"]] = {**row, "folder": Path(path).parent}
    return rows


def _known(slide: dict, stages: dict[str, dict[str, dict]]) -> dict[str, object]:
    """All that the stages know of a slide, up to the one it failed at."""
    slide_id = slide["slide_id"]
    known: dict[str, object] = {}
    for stage, rows in stages.items():
        if slide_id not in rows:
            raise InputError(f"no manifest of the stage {stage!r} has this slide", slide=slide_id, remedy="Run its chunk again.")
        known |= {**rows[slide_id], "stage": stage}
        if known["status"] != OK:
            break
    return {**known, "patient_id": slide["patient_id"]}
