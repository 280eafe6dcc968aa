"""The tables of a study: follow-up, splits, molecular and further tables, with their paths resolved."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.config import ROOT
from pipeline.contents import Contents
from pipeline.errors import InputError, nearest
from pipeline.limits import MOST_CELLS, MOST_LINE
from pipeline.placeholders import filled, without_braces


def data_path(study: Mapping[str, Any], path: str) -> str:
    """A path of the cohort's file: absolute as it is, else relative to the study's `data_dir`. Raises `InputError` for braces in it."""
    remedy = "Rename or move it, or give a link to it."
    return without_braces(path if Path(path).is_absolute() else str(Path(study["data_dir"]) / path), remedy, study.get("file"))


def kind(study: Mapping[str, Any]) -> str:
    """`survival` or `binary`: what the study's endpoint is."""
    return study["endpoints"].get(study["endpoint"], {}).get("kind", "survival")


def endpoint(study: Mapping[str, Any]) -> dict[str, Any]:
    """How to read the study's follow-up (`file` resolved); raises `InputError` when it is not one of `endpoints`."""
    name, known = study["endpoint"], study["endpoints"]
    if name not in known:
        raise InputError(
            f"unknown endpoint {name!r}", file=study["file"], expected="one of " + ", ".join(known), remedy=nearest(name, known)
        )
    settings = dict(known[name])
    return {"file": data_path(study, settings.pop("table")), **settings}


def has_data(study: Mapping[str, Any]) -> bool:
    """Whether the follow-up of the study is on disk."""
    return Path(endpoint(study)["file"]).is_file()


def included(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conditions that restrict the cohort, with the paths of their tables resolved."""
    return [{**condition, "table": data_path(study, condition["table"])} for condition in study["include"]]


SPLIT_OPTIONS = {
    "kfold": ("folds", "repeats"),
    "site": ("folds", "repeats", "site"),
    "monte_carlo": ("folds", "test_share"),
    "imported": ("folds", "first", "column", "train", "test", "patient_id", "allow_untested"),
}


def splits(study: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `pipeline.cohort.splits.build_splits`, with the path of imported lists resolved.

    Raises `InputError` for imported lists without a file and for `repeats` of a scheme that has none.
    """
    scheme = study["splits"]
    method = scheme["scheme"]
    if scheme["repeats"] > 1 and "repeats" not in SPLIT_OPTIONS[method]:
        remedy = "Remove it; `folds` says how many random draws or lists there are."
        problem = f"splits.repeats does nothing with the scheme {method!r}"
        raise InputError(problem, file=study["file"], found=scheme["repeats"], expected="1", remedy=remedy)
    chosen = {"method": method, **{key: scheme[key] for key in SPLIT_OPTIONS[method]}}
    if method != "imported":
        return chosen
    if not scheme.get("file"):
        raise InputError(
            "splits.scheme is 'imported' but splits.file is missing", file=study["file"], expected="a path, perhaps with {fold}"
        )
    return {**chosen, "pattern": str(Path(data_path(study, ".")) / scheme["file"])}


def fold_count(study: Mapping[str, Any]) -> int:
    """Number of folds, all repeats together."""
    scheme = splits(study)
    return scheme["folds"] * scheme.get("repeats", 1)


def split_files(study: Mapping[str, Any]) -> list[str]:
    """The imported lists of the study: a file a fold, or one for all."""
    scheme = splits(study)
    if scheme["method"] != "imported":
        return []
    return sorted({filled(scheme["pattern"], "fold", scheme["first"] + fold, study["file"]) for fold in range(scheme["folds"])})


def omics_tables(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The molecular tables, with their paths resolved."""
    return [{**table, "file": data_path(study, table["file"])} for table in study["omics"]["tables"]]


def groupings(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The gene groupings with resolved paths; one marked `optional` is left out where its file is absent.

    Raises `InputError` for another that is absent.
    """
    found = {}
    for name, grouping in study["omics"]["groups"].items():
        file = data_path(study, grouping["file"])
        if study["synthetic"] or Path(file).is_file():
            found[name] = {**grouping, "file": file}
        elif not grouping["optional"]:
            remedy = f"Check omics.groups.{name}.file and data_dir, or mark the grouping optional."
            raise InputError("no such gene-set file", file=file, expected="a GMT, TSV or CSV file", remedy=remedy)
    return found


def aliases(study: Mapping[str, Any]) -> list[str]:
    """Tables of outdated gene symbols: our own and, where it names one, the cohort's."""
    own = study["omics"]["aliases"]
    return [str(ROOT / "gene_aliases.tsv"), *([data_path(study, own)] if own else [])]


def tables(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How to read the further tables (`pipeline.cohort.vectors.read_vectors`), by modality, with their paths resolved."""
    reading = ("patient_id", "columns", "categorical")
    return {
        name: {"file": data_path(study, table["file"]), **{key: table[key] for key in reading if key in table}}
        for name, table in study["tables"].items()
    }


def bag_sources(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The bags that are not slides, by modality, with their paths resolved."""
    return {
        name: {**bag, **{key: data_path(study, bag[key]) for key in ("file", "manifest") if bag.get(key)}}
        for name, bag in study["bags"].items()
    }


def mri_listing(source: Mapping[str, Any], contents: Contents) -> str:
    """A digest of the names and contents of the files in a table of MRI, so that new or replaced ones make the bags stale."""
    table = Path(source["manifest"])
    return contents.listing(table.parent, named_files(table, ["image", "mask"], table.parent))


def named_files(table: str | Path, columns: Iterable[str], folder: Path) -> set[Path]:
    """The files, relative to `folder`, that `columns` of a table name; none where there is no such table.

    It does without pandas, which Snakemake's own environment may lack; what is wrong in the table is told by the job that reads it.
    """
    table = Path(table)
    if not table.is_file():
        return set()
    opened = gzip.open if table.suffix == ".gz" else open
    found: set[Path] = set()
    try:
        with opened(table, "rt", encoding="utf-8-sig", errors="replace", newline="") as handle:
            lines = iter(lambda: handle.readline(MOST_LINE), "")
            for row in islice(csv.DictReader(lines, delimiter="," if ".csv" in table.suffixes else "\t"), MOST_CELLS):
                found |= {folder / row[column] for column in columns if row.get(column)}
    except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error):
        return found
    return found
