"""A job of many folds of one model: finished ones are kept, the others are trained in processes forked from one that has read the data.

PyTorch is imported only when a fold is left to be trained.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import sha256
from pipeline.jobs.cores import Cores
from pipeline.jobs.finished import Unit, drop_tables, fold_settings_digest, is_finished, prove, write_folds
from pipeline.jobs.forking import run_forked
from pipeline.logs import name_lines
from pipeline.measuring import measured, used

if TYPE_CHECKING:
    from pipeline.training.dataset import RawData

log = logging.getLogger(__name__)


def train_folds(
    *,
    settings: Mapping[str, Any],
    units: Sequence[Unit],
    files: Mapping[str, Any],
    model: Path,
    table: Path,
    benchmarks: Path,
    code: str,
    cores: Cores,
    memory_mb: float = 8000,
) -> None:
    """Train those of `units` that are not finished, each in a process of its own, and write the job's table.

    settings: `study.fold_settings`; files: as for `RawData.read`; model: the folder of the model, with one folder per fold; benchmarks:
    the folder for what each fold took; code: the version of what trains; cores: of the job, one fold at a time for each, and
    more while the run has some to spare; memory_mb: of the job, see `RawData.read`.
    A fold that cannot be trained for what the study is (no event, no patient with the modality) is a result and listed as such. What every
    fold reads and cannot be read is none: `InputError` or `MachineError` is raised. Nor is a fold whose process dies: the others are
    finished, and the job ends with status 1.
    """
    inputs = input_digest(files, settings)
    keys = {unit: fold_key(settings, unit, inputs, code) for unit in units}
    left = [unit for unit in units if not is_finished(unit.folder(model), keys[unit])]
    if len(left) < len(units):
        log.info("%d of %d folds are finished and kept", len(units) - len(left), len(units))
    if left:
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(1)  # and that of BLAS: fixed, so that predictions do not depend on --cores
        threadpool_limits(1)
        drop_tables(model, left)
        from pipeline.training.dataset import RawData

        raw = RawData.read(files, settings, memory_mb)
        lost = _train(settings, {unit: keys[unit] for unit in left}, raw, model, benchmarks, code, cores)
        for unit, end in lost.items():
            log.error("%s was not finished: its process ended (%s)", unit, end)
        if lost:
            remedy = "more memory (--set-resources train_fold:mem_mb=16000), if that was the cause; what is finished is kept"
            log.error("%d of %d folds are not finished; run again, with %s", len(lost), len(units), remedy)
            sys.exit(1)
    write_folds(units, model, table)


def _train(
    settings: Mapping[str, Any], keys: Mapping[Unit, str], raw: RawData, model: Path, benchmarks: Path, code: str, cores: Cores
) -> dict[Unit, str]:
    """Train the folds of `keys`; how those processes ended that did not end well."""
    from pipeline.training.fold import FILES, train_fold

    start = used()[1] / len(keys)  # each fold's share of what was loaded for all

    def train(unit: Unit) -> None:
        name_lines(str(unit))
        folder = unit.folder(model)
        chosen = settings if unit.repetition is None else {**settings, "shuffled": unit.repetition}
        with measured(benchmarks / f"train_{model.name}_{_number(unit)}.tsv", start):
            train_fold(settings=chosen, fold=unit.fold, raw=raw, folder=folder, code=code, key=keys[unit])
        prove(folder, keys[unit], fold_settings_digest(settings), FILES)

    return run_forked(list(keys), train, cores)


def _number(unit: Unit) -> str:
    return str(unit.fold) if unit.repetition is None else f"shuffled{unit.repetition}_{unit.fold}"


def fold_key(settings: Mapping[str, Any], unit: Unit, inputs: str, code: str) -> str:
    """A digest of all that the fold's files depend on, PyTorch's version among it."""
    parts = [fold_settings_digest(settings), unit.fold, unit.repetition, inputs, code, version("torch")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def input_digest(files: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """A digest of the contents of what the model reads; those of the slides' features stand in their manifest."""
    tables = [table["file"] for name, table in settings["tables"].items() if name in settings["modalities"]]
    reads = {"omics": ("matrix", "groups"), "wsi": ("manifest",)}
    names = ["patients", "splits", *(name for modality in settings["modalities"] for name in reads.get(modality, ()))]
    single = [files[name] for name in names if files[name]]
    bags = [file for name, file in files["bags"].items() if name in settings["modalities"]]
    digests = [sha256(file) for file in [*single, *bags, *tables]]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
