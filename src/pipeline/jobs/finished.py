"""The proof that a fold is finished, and the one owner of ``folds_<part>.tsv``, the table of a job's folds.

A fold's files are no outputs that Snakemake knows: it would delete all folds of a job of which one fails. A fold is taken for done when its
folder holds a proof of the same key, and every file that the proof names has the digest it had.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import read_yaml
from pipeline.errors import InputError
from pipeline.files import sha256, write_text

PROOF = "finished.yaml"


@dataclass(frozen=True)
class Unit:
    """One fold to be trained: of the study, or of a repetition on permuted labels."""

    fold: int
    repetition: int | None = None

    def folder(self, model: Path) -> Path:
        """Where its files are, below the folder of the model."""
        return (model if self.repetition is None else model / f"shuffled{self.repetition}") / f"fold{self.fold}"

    def __str__(self) -> str:
        """In a log.

        >>> print(Unit(3), "|", Unit(0, 2))
        fold 3 | permutation 2, fold 0
        """
        return ("" if self.repetition is None else f"permutation {self.repetition}, ") + f"fold {self.fold}"


def units_of(part: str, folds: int, shuffled: bool = False) -> list[Unit]:
    """The folds of a job by its name: ``0-4`` or ``3``. Of permuted labels they count on: fold k of repetition r is r × folds + k.

    >>> [str(unit) for unit in units_of("4-5", 5, shuffled=True)]
    ['permutation 0, fold 4', 'permutation 1, fold 0']
    """
    first, _, last = part.partition("-")
    numbers = range(int(first), int(last or first) + 1)
    return [Unit(n % folds, n // folds) if shuffled else Unit(n) for n in numbers]


def parts(count: int, per_job: int | None) -> list[str]:
    """Names of the jobs over `count` folds, at most `per_job` in each (None: all).

    >>> parts(5, 2), parts(5, None)
    (['0-1', '2-3', '4'], ['0-4'])
    """
    per_job = per_job or max(count, 1)
    ends = [(first, min(first + per_job, count) - 1) for first in range(0, count, per_job)]
    return [str(first) if first == last else f"{first}-{last}" for first, last in ends]


def fold_settings_digest(settings: Mapping[str, Any]) -> str:
    """Hex digits of what a fold is trained with (`study.fold_settings`), wherever its tables lie: their contents are inputs."""
    tables = {name: {key: value for key, value in table.items() if key != "file"} for name, table in settings["tables"].items()}
    return hashlib.sha256(json.dumps({**settings, "tables": tables}, sort_keys=True, default=str).encode()).hexdigest()


def is_finished(folder: Path, key: str) -> bool:
    """Whether the fold in `folder` is done with this key, and its files are as they were then."""
    try:
        proof = read_yaml(folder / PROOF)
        return proof["key"] == key and all(sha256(folder / name) == digest for name, digest in proof["files"].items())
    except (InputError, KeyError, AttributeError, OSError):
        return False


def prove(folder: Path, key: str, settings: str, files: Sequence[str]) -> None:
    """Write the proof of a fold whose `files`, names in `folder`, are all written; settings: their `fold_settings_digest`."""
    digests = {name: sha256(folder / name) for name in files}
    write_text(folder / PROOF, yaml.safe_dump({"key": key, "settings": settings, "files": digests}, sort_keys=False))


def write_folds(units: Iterable[Unit], model: Path, table: Path) -> None:
    """Write a job's table: one row per fold with its folder below `model` and the digest of its proof, which tells of every change."""
    rows = [f"{unit.folder(Path())}\t{sha256(unit.folder(model) / PROOF)}\n" for unit in units]
    write_text(table, "".join(["folder\tproof\n", *rows]))


def fold_folders(tables: Iterable[str | Path], asked: str | None = None) -> list[Path]:
    """The folders of all folds that the jobs' tables list, in their order.

    asked: the `fold_settings_digest` that they should have been trained with, where it is to be checked. Raises `InputError` for a
    fold that is not the one listed, was trained with other settings, or of which a file has been changed since.
    """
    found = []
    for table in map(Path, tables):
        again = f"Delete {table} and run again."
        for name, digest in _read_folds(table):
            folder = table.parent / name
            if not (folder / PROOF).is_file() or sha256(folder / PROOF) != digest:
                problem = f"{name} is not the fold that was listed: it was removed or trained otherwise since"
                raise InputError(problem, file=table, remedy=again)
            proof = read_yaml(folder / PROOF)
            if asked not in (None, proof["settings"]):
                raise InputError(f"{name} was trained with other settings than those that are asked for now", file=table, remedy=again)
            for file, was in proof["files"].items():
                if not (folder / file).is_file() or sha256(folder / file) != was:
                    raise InputError("was changed or removed since its fold was finished", file=folder / file, remedy=again)
            found.append(folder)
    return found


def drop_tables(model: Path, units: Iterable[Unit]) -> None:
    """Remove every table below `model` that lists one of `units`, which are about to be trained anew: none is to pass for their result."""
    names = {unit.folder(Path()).as_posix() for unit in units}
    for table in [*model.glob("folds_*.tsv"), *model.glob("shuffled_*.tsv")]:
        try:
            listed = {name for name, _ in _read_folds(table)}
        except InputError:
            continue
        if names & listed:
            table.unlink(missing_ok=True)


def _read_folds(table: Path) -> list[tuple[str, str]]:
    """Folder and digest of the proof of each fold of a job. Raises `InputError` for a table that is none, or was cut off."""
    text = table.read_bytes().decode("utf-8", errors="replace")
    header, *rows = [tuple(line.split("\t")) for line in text.splitlines()] or [()]
    if header != ("folder", "proof") or any(len(row) != 2 for row in rows) or not text.endswith("\n"):
        found = " ".join(header)[:80]
        raise InputError(
            "is no whole table of folds", file=table, found=found, expected="folder and proof", remedy="Delete it and run again."
        )
    return rows
