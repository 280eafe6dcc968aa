"""The stage: every patient's sequences to one bag each, skipping what is done, and a manifest that says what became of each sequence."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.cohort.bags import BagRows, gather_bags, write_bags
from pipeline.errors import InputError
from pipeline.files import sha256
from pipeline.hdf5 import attributes, open_hdf5
from pipeline.imaging.manifest import Cases, SequenceFiles, read_cases
from pipeline.imaging.mri import MriSettings, NoTumourError, Tumour, read_tumour
from pipeline.machine import Faults, machine_fault
from pipeline.slides.encoders.network import HANDCRAFTED, Encoder, EncoderSettings, load_encoder
from pipeline.slides.encoders.table import EncoderSpec, encoder_spec
from pipeline.slides.provenance import settings_digest
from pipeline.tables import read_table, write_table

log = logging.getLogger(__name__)

VERSION = 1  # of the recipe: bags are made again when it changes
OK, MISSING, FAILED = "ok", "missing", "failed"
ORIGIN = ["settings", "inputs"]
FACTS = ["rows", "slices", "spacing", "box", "slice_axis", "mask_grid"]
COLUMNS = ["patient_id", "sequence", "status", "reason", "remedy", *FACTS, *ORIGIN]
BATCH = 8  # slices: a tumour has few of them, and batches are filled up on a CPU (our choice)


def mri_features(
    cases: str | Path,
    manifest: str | Path,
    settings: MriSettings,
    encoder: str = "resnet50_cut",
    *,
    patient_id: str = "patient_id",
    overrides: Mapping[str, Mapping[str, object]] | None = None,
    running: Mapping[str, object] | None = None,
) -> None:
    """Bags of every patient of the table `cases` (`read_cases`) into the folder of `manifest`'s name without suffix, and the manifest.

    A bag is a file of `pipeline.cohort.bags` with `features` [n, width], `sequence` (its place in the order of sequences) and, for rows
    that are slices, `slice`. Its attributes hold a digest of the settings and of the bytes of its files: a patient whose file has both
    is skipped, unless one of his sequences failed.

    The manifest has a row a patient and sequence: `status` ``ok``, ``missing`` (not in the table, or no tumour in the mask) or
    ``failed``, the `rows` that it gives the bag, where the tumour was found, and both digests. A file that cannot be used fails its
    sequence alone. After a fault of the machine the other patients are done, and `MachineError` is raised in place of the manifest. What
    the encoder raises is raised: it would meet every patient. For rows that are volumes no encoder is loaded.
    `overrides` changes entries of config/encoders.yaml; `running`: see `EncoderSettings`, with batches of 8 and no compilation where
    it does not say.
    """
    stage = _Stage(read_cases(cases, patient_id=patient_id, sequences=settings.sequences), settings, encoder, overrides, running)
    folder, rows, faults = Path(manifest).with_suffix(""), [], Faults("patients", len(stage.cases.patients))
    for number, (patient, files) in enumerate(stage.cases.patients.items(), start=1):
        start = time.perf_counter()
        try:
            origin = stage.origin(files)
            found = stage.process(patient, files, folder / f"{patient}.h5", origin)
        except Exception as error:
            fault = machine_fault(error)
            if fault is None or fault.everywhere:
                raise
            log.warning("patient %s was not done: %s", patient, fault)
            faults.add(patient, fault)
            continue
        rows += [{"patient_id": patient, **row, **origin} for row in found]
        for row in found:
            if row["status"] != OK:
                log.warning("patient %s, sequence %s is %s: %s", patient, row["sequence"], row["status"], row["reason"])
        count, seconds = sum(row.get("rows") or 0 for row in found), time.perf_counter() - start
        log.info("patient %s (%d of %d): %d rows; %.1f s", patient, number, len(stage.cases.patients), count, seconds)
    faults.check()
    write_table(pd.DataFrame(rows, columns=COLUMNS).astype({"rows": "Int64", "slice_axis": "Int64"}), manifest)


def gather_cases(manifest: str | Path, output: str | Path) -> None:
    """Join the bags of all patients of `manifest` that have a sequence; raises `InputError` where none has."""
    table = read_table(manifest, ["patient_id", "status", "reason", "remedy"])
    usable = sorted(set(table.loc[table["status"] == OK, "patient_id"]))
    if not usable:
        reason, remedy = table[["reason", "remedy"]].fillna("").iloc[0]
        raise InputError("no patient has a sequence that can be used", file=manifest, found=reason, remedy=remedy)
    gather_bags([Path(manifest).with_suffix("") / f"{patient}.h5" for patient in usable], output)


class _Stage:
    """What all patients share."""

    def __init__(
        self,
        cases: Cases,
        settings: MriSettings,
        encoder: str,
        overrides: Mapping[str, Mapping[str, object]] | None,
        running: Mapping[str, object] | None,
    ) -> None:
        self.cases, self._settings = cases, settings
        self._running = EncoderSettings(**{"batch_size": BATCH, "compile": False, **(running or {})})
        self._spec = None if settings.rows == "volume" else _slice_encoder(encoder, overrides)
        self._digest = settings_digest(VERSION, asdict(settings), cases.sequences, self._spec and self._spec.digest())

    @cached_property
    def _encoder(self) -> Encoder:
        return load_encoder(self._spec, self._running)

    @cached_property
    def _encoder_facts(self) -> dict[str, object]:
        """What the features depend on besides the settings; the checkpoint is known once the encoder is loaded."""
        if self._spec is None:
            return {"shape": np.array(self._settings.shape)}
        from pipeline.slides.encoders.weights import checkpoint_of

        return {"encoder": self._spec.name, "weights": sha256(checkpoint_of(self._spec)), **self._encoder.describe()}

    def origin(self, files: Mapping[str, SequenceFiles]) -> dict[str, str]:
        """Digests of what a bag is made from."""
        return dict(zip(ORIGIN, (self._digest, _inputs(files)), strict=True))

    def process(self, patient: str, files: Mapping[str, SequenceFiles], output: Path, origin: Mapping[str, str]) -> list[dict[str, object]]:
        """The manifest's rows of one patient, whose bag is made unless `output` holds it already."""
        done = _rows_of(output, origin)
        if done is not None:
            return done
        output.unlink(missing_ok=True)
        rows, parts = [], {}
        for sequence in self.cases.sequences:
            tumour = _attempt(files.get(sequence), self._settings)
            if isinstance(tumour, Tumour):
                parts[sequence] = self._describe(tumour), tumour.slices
                rows.append({"sequence": sequence, "status": OK, "rows": len(parts[sequence][0]), **tumour.facts()})
            else:
                rows.append({"sequence": sequence, **tumour})
        if parts:
            self._write(output, patient, parts, {**origin, "manifest": json.dumps(rows)})
        return rows

    def _describe(self, tumour: Tumour) -> np.ndarray:
        """The rows of one sequence [n, d]."""
        if self._spec is None:
            return tumour.volume().reshape(1, -1).astype(np.float16)
        features = self._encoder.encode(tumour.images())
        return features.mean(axis=0, keepdims=True) if self._settings.rows == "sequence" else features

    def _write(self, output: Path, patient: str, parts: dict[str, tuple[np.ndarray, np.ndarray]], attributes: dict[str, object]) -> None:
        """The bag of a patient; `parts`: sequence → its rows and the numbers of its slices. Of volumes, those that lack are zeros."""
        names = self.cases.sequences
        if self._spec is None:
            lacking = np.zeros((1, int(np.prod(self._settings.shape))), np.float16), np.zeros(0, int)
            parts = {name: parts.get(name, lacking) for name in names}
        features = np.concatenate([rows for rows, _ in parts.values()])
        columns = {"sequence": np.concatenate([np.full(len(rows), names.index(name), np.int16) for name, (rows, _) in parts.items()])}
        if self._settings.rows == "slice":
            columns["slice"] = np.concatenate([slices for _, slices in parts.values()]).astype(np.int32)
        facts = {"rows": self._settings.rows, "sequences": json.dumps(names), **self._encoder_facts}
        write_bags(output, BagRows(features, np.full(len(features), patient), columns, {**facts, **attributes}))


def _slice_encoder(name: str, overrides: Mapping[str, Mapping[str, object]] | None) -> EncoderSpec:
    """The entry of config/encoders.yaml; its checkpoint must exist where one is named."""
    spec = encoder_spec(name, overrides)
    if spec.architecture == HANDCRAFTED or spec.input_size is None:
        remedy = "Use resnet50_cut (1024 numbers a slice) or resnet50 (2048)."
        problem, expected = "the encoder is not one for MRI slices", "a network with an input_size"
        raise InputError(problem, column="encoder", found=name, expected=expected, remedy=remedy)
    return spec


def _attempt(files: SequenceFiles | None, settings: MriSettings) -> Tumour | dict[str, object]:
    """The tumour of a sequence, or why there is none."""
    if files is None:
        return {"status": MISSING, "reason": "not in the table of MRI files."}
    try:
        return read_tumour(files, settings)
    except InputError as error:
        if fault := machine_fault(error):
            raise fault from error
        return {"status": MISSING if isinstance(error, NoTumourError) else FAILED, "reason": error.reason, "remedy": error.remedy}


def _inputs(files: Mapping[str, SequenceFiles]) -> str:
    """A digest of the bytes of a patient's files. All of them: a corrected mask differs in its middle alone."""

    @cache
    def known(path: Path) -> str:
        try:
            return sha256(path)
        except OSError as error:
            if fault := machine_fault(error, path):
                raise fault from error
            return "unreadable"  # told, with its reason, when the file is read

    return settings_digest({name: [known(pair.image), known(pair.mask)] for name, pair in files.items()})


def _rows_of(path: Path, origin: Mapping[str, str]) -> list[dict[str, object]] | None:
    """The manifest's rows kept in a bag that was made from the same without a failure; None where there is none."""
    try:
        with open_hdf5(path) as file:
            facts = attributes(file)
    except (OSError, InputError):
        return None
    same = all(facts.get(key) == value for key, value in origin.items())
    rows = json.loads(str(facts["manifest"])) if same else []
    return rows if rows and all(row["status"] != FAILED for row in rows) else None
