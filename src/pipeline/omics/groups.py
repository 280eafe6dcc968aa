"""Gene families and pathways: read gene sets, keep what is measured, say how much of each set that is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import tables
from pipeline.errors import InputError
from pipeline.omics.matrix import KINDS, read_matrix

log = logging.getLogger(__name__)

FORMATS = (".gmt", ".tsv", ".csv")
GROUP_COLUMNS = ("group", "family", "pathway", "gene_set", "set")


def read_gene_sets(path: str | Path) -> dict[str, list[str]]:
    """Gene sets in file order, each gene once, in file order: {name: [gene, …]}.

    Three forms: GMT (name, description, genes), a long table (a column ``group``, ``family``, ``pathway``, ``gene_set`` or
    ``set`` and a column ``gene``), a wide table (header = names, cells = genes, blank-padded). ``.tsv`` and ``.csv`` are told
    apart by their ending, long and wide by their header; all may be gzipped. Raises `InputError` when the file is absent, has
    another ending, holds no gene, names a set twice (GMT), or a line of it lacks its genes.
    """
    path = Path(path)
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending not in FORMATS:
        remedy = "Save the gene sets as GMT or as a table."
        raise InputError("unknown format of gene sets", file=path, found=ending or path.name, expected=" or ".join(FORMATS), remedy=remedy)
    if not path.is_file():
        raise InputError("no such gene-set file", file=path, expected="a GMT, TSV or CSV file", remedy="Check the path and `data_dir`.")
    sets = _from_gmt(path) if ending == ".gmt" else _from_table(path)
    sets = {name: list(dict.fromkeys(genes)) for name, genes in sets.items()}
    if not any(sets.values()):
        raise InputError("holds no gene", file=path, expected="at least one set with one gene")
    return sets


def _from_gmt(path: Path) -> dict[str, list[str]]:
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(tables.read_lines(path), start=1):
        name, *rest = (cell.strip() for cell in line.split("\t"))
        if not name and not rest:
            continue
        if not name or not rest:
            raise InputError(
                "line is not a gene set",
                file=path,
                row=number,
                found=line.strip()[:40],
                expected="name, description and genes, separated by tabs",
            )
        if name in sets:
            raise InputError("gene set appears twice", file=path, row=number, found=name, expected="each name once")
        sets[name] = [gene for gene in rest[1:] if gene]
    return sets


def _from_table(path: Path) -> dict[str, list[str]]:
    table = tables.read_table(path)
    lower = {str(column).strip().lower(): column for column in table.columns}
    if "gene" not in lower:
        return {str(name).strip(): [gene.strip() for gene in table[name].dropna()] for name in table.columns}
    group = next((lower[name] for name in GROUP_COLUMNS if name in lower), None)
    if group is None:
        raise InputError(
            "has genes but no group", file=path, found=", ".join(table.columns), expected=f"a column {' or '.join(GROUP_COLUMNS)}"
        )
    rows = table[[group, lower["gene"]]].dropna()
    return {str(name).strip(): [gene.strip() for gene in genes] for name, genes in rows.groupby(group, sort=False)[lower["gene"]]}


def build_groups(
    matrix: str | Path, groupings: Mapping[str, Mapping[str, Any]], output: str | Path, coverage: str | Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Map gene sets onto the features of `matrix`; write `output` (`groups.tsv`) and `coverage` (`coverage.tsv`).

    groupings: name → ``file``, ``kinds`` (which of rnaseq, cnv, mut feed the groups; by default all for ``families`` (MCAT),
    rnaseq for any other (SurvPath)) and ``min_coverage`` (share of a set's genes that must be measured; default 0, SurvPath's
    authors used 0.9 before they published their lists). A gene counts as found when any of the kinds measures it.
    Groups stand in file order, the features of a group sorted by name, each once; a gene may feed several groups. A group with
    no measured gene, or too few, is left out, logged and listed in `coverage`. Raises `InputError` for an unknown kind, a share
    outside [0, 1], and a grouping that keeps no group and is not `optional`.
    """
    features = read_matrix(matrix).features
    grouped, covered = [], []
    for grouping, spec in groupings.items():
        kinds = tuple(spec.get("kinds") or (KINDS if grouping == "families" else ("rnaseq",)))
        share = float(spec.get("min_coverage") or 0)
        _check_spec(spec["file"], kinds, share)
        kept, report = _map_sets(read_gene_sets(spec["file"]), features, kinds, share)
        if not kept and spec.get("optional"):
            log.warning("%s: none of its groups is measured; it is left out", grouping)
        elif not kept:
            found = ", ".join(features[:3])
            remedy = "Check that both use the same gene symbols and that `kinds` names what the tables hold."
            problem = f"no group of {grouping!r} is measured"
            raise InputError(
                problem, file=spec["file"], found=found, expected=f"features <gene>_{'|'.join(kinds)} of its genes", remedy=remedy
            )
        left = [name for name, *_ in report if name not in kept]
        if left:
            log.warning("%s: %d of %d groups have too few measured genes: %s", grouping, len(left), len(report), "; ".join(left))
        grouped += [(grouping, name, feature) for name, members in kept.items() for feature in members]
        covered += [(grouping, *row) for row in report]
    groups = pd.DataFrame(grouped, columns=["grouping", "group", "feature"])
    report_table = pd.DataFrame(covered, columns=["grouping", "group", "genes", "found", "coverage"])
    tables.write_table(groups, output)
    tables.write_table(report_table, coverage)
    return groups, report_table


def _check_spec(file: str | Path, kinds: Sequence[str], share: float) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise InputError("unknown kind of omics feature in `kinds`", file=file, found=kind, expected=" or ".join(KINDS))
    if not 0 <= share <= 1:
        raise InputError("`min_coverage` is not a share", file=file, found=share, expected="a number from 0 to 1")


def _map_sets(
    sets: Mapping[str, list[str]], features: Sequence[str], kinds: Sequence[str], share: float
) -> tuple[dict[str, list[str]], list[tuple[str, int, int, float]]]:
    """{group: features} of the groups kept, and (group, genes, found, coverage) of all."""
    measured = set(features)
    kept, report = {}, []
    for name, genes in sets.items():
        members = {gene: [f"{gene}_{kind}" for kind in kinds if f"{gene}_{kind}" in measured] for gene in genes}
        found = sum(map(bool, members.values()))
        report.append((name, len(genes), found, found / len(genes) if genes else 0.0))
        if found and found >= share * len(genes):
            kept[name] = sorted(feature for some in members.values() for feature in some)
    return kept, report


def read_groups(path: str | Path) -> dict[str, dict[str, list[str]]]:
    """{grouping: {group: [feature, …]}} in file order, from what `build_groups` wrote. Raises `InputError` for a foreign file."""
    table = tables.read_table(path, ["grouping", "group", "feature"])
    groups: dict[str, dict[str, list[str]]] = {}
    for grouping, group, feature in table.itertuples(index=False):
        groups.setdefault(grouping, {}).setdefault(group, []).append(feature)
    return groups
