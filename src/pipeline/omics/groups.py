"""Gene families and pathways: read gene sets, keep what is measured, say how much of each set that is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import tables
from pipeline.errors import InputError
from pipeline.omics.matrix import KINDS, read_matrix
from pipeline.omics.symbols import Symbols, read_aliases, refuse_dates

log = logging.getLogger(__name__)

FORMATS = (".gmt", ".tsv", ".csv")
GROUP_COLUMNS = ("group", "family", "pathway", "gene_set", "set")


def read_gene_sets(path: str | Path) -> dict[str, list[str]]:
    """Gene sets in file order, each gene once, in file order: {name: [gene, …]}.

    Three forms: GMT (name, description, genes), a long table (a column ``group``, ``family``, ``pathway``, ``gene_set`` or
    ``set`` and a column ``gene``), a wide table (header = names, cells = genes, blank-padded). ``.tsv`` and ``.csv`` are told
    apart by their ending, long and wide by their header; all may be gzipped. Raises `InputError` when the file is absent, has
    another ending, holds no gene, names a set twice (GMT), a line of it lacks its genes, or a spreadsheet made genes dates.
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
    refuse_dates(dict.fromkeys(gene for genes in sets.values() for gene in genes), path)
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


@dataclass(frozen=True)
class Coverage:
    """Of one set: its name, how many genes it lists, how many are measured, and how many of these under another symbol only."""

    group: str
    genes: int
    found: int
    found_by_alias: int

    @property
    def share(self) -> float:
        return self.found / self.genes if self.genes else 0.0


def build_groups(
    matrix: str | Path,
    groupings: Mapping[str, Mapping[str, Any]],
    output: str | Path,
    coverage: str | Path,
    aliases: Sequence[str | Path] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Map gene sets onto the features of `matrix`; write `output` (`groups.tsv`) and `coverage` (`coverage.tsv`).

    groupings: name → ``file``, ``kinds`` (which of rnaseq, cnv, mut feed the groups; by default all for ``families`` (MCAT),
    rnaseq for any other (SurvPath)) and ``min_coverage`` (share of a set's genes that must be measured; default 0, SurvPath's
    authors used 0.9 before they published their lists). A gene counts as found when any of the kinds measures it, be it under an
    outdated or newer symbol of the tables `aliases` (`read_aliases`); a symbol that is itself measured stands for itself.
    Groups stand sorted by name, and so do the features of a group, each once, whatever the order of the file's rows; a gene may feed
    several groups. A group with no measured gene, or too few, is left out, logged and listed in `coverage`.
    Raises `InputError` for an unknown kind, a share outside [0, 1], and a grouping that keeps no group and is not `optional`.
    """
    features = read_matrix(matrix).features
    symbols = read_aliases(*aliases)
    grouped, covered = [], []
    for grouping, spec in groupings.items():
        kinds = tuple(spec.get("kinds") or (KINDS if grouping == "families" else ("rnaseq",)))
        share = float(spec.get("min_coverage") or 0)
        _check_spec(spec["file"], kinds, share)
        sets = dict(sorted(read_gene_sets(spec["file"]).items()))
        kept, report = _map_sets(sets, Measured.of(features, kinds, symbols), share, Path(spec["file"]).name)
        if not kept and spec.get("optional"):
            log.warning("%s: none of its groups is measured; it is left out", grouping)
        elif not kept:
            found = ", ".join(features[:3])
            remedy = "Check that both use the same gene symbols and that `kinds` names what the tables hold."
            problem = f"no group of {grouping!r} is measured"
            raise InputError(
                problem, file=spec["file"], found=found, expected=f"features <gene>_{'|'.join(kinds)} of its genes", remedy=remedy
            )
        left = [row.group for row in report if row.group not in kept]
        if left:
            log.warning("%s: %d of %d groups have too few measured genes: %s", grouping, len(left), len(report), "; ".join(left))
        grouped += [(grouping, name, feature) for name, members in kept.items() for feature in members]
        covered += [(grouping, row.group, row.genes, row.found, row.found_by_alias, row.share) for row in report]
    groups = pd.DataFrame(grouped, columns=["grouping", "group", "feature"])
    report_table = pd.DataFrame(covered, columns=["grouping", "group", "genes", "found", "found_by_alias", "coverage"])
    tables.write_table(groups, output)
    tables.write_table(report_table, coverage)
    return groups, report_table


def _check_spec(file: str | Path, kinds: Sequence[str], share: float) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise InputError("unknown kind of omics feature in `kinds`", file=file, found=kind, expected=" or ".join(KINDS))
    if not 0 <= share <= 1:
        raise InputError("`min_coverage` is not a share", file=file, found=share, expected="a number from 0 to 1")


@dataclass(frozen=True)
class Measured:
    """The features a gene set may draw on: all of them, and the same by (current symbol, kind)."""

    features: frozenset[str]
    by_symbol: Mapping[tuple[str, str], tuple[str, ...]]
    kinds: tuple[str, ...]
    symbols: Symbols

    @classmethod
    def of(cls, features: Sequence[str], kinds: Sequence[str], symbols: Symbols) -> Measured:
        by_symbol: dict[tuple[str, str], tuple[str, ...]] = {}
        for feature in features:
            gene, _, kind = feature.rpartition("_")
            key = symbols.current(gene), kind
            by_symbol[key] = (*by_symbol.get(key, ()), feature)
        return cls(frozenset(features), by_symbol, tuple(kinds), symbols)

    def exact(self, gene: str) -> list[str]:
        """The features that are named by this very symbol."""
        return [name for kind in self.kinds if (name := f"{gene}_{kind}") in self.features]

    def members(self, gene: str) -> list[str]:
        """A feature a kind: the one of this symbol, else the one whose symbol means the same gene; none where several do."""
        found = []
        for kind in self.kinds:
            same = self.by_symbol.get((self.symbols.current(gene), kind), ())
            found += [name] if (name := f"{gene}_{kind}") in self.features else same if len(same) == 1 else ()
        return found


def _map_sets(sets: Mapping[str, list[str]], measured: Measured, share: float, file: str) -> tuple[dict[str, list[str]], list[Coverage]]:
    """{group: features} of the groups kept, and the coverage of all."""
    kept, report, unclear = {}, [], set()
    for name, genes in sets.items():
        members = {gene: measured.members(gene) for gene in genes}
        exact = sum(bool(measured.exact(gene)) for gene in genes)
        row = Coverage(name, len(genes), found := sum(map(bool, members.values())), found - exact)
        report.append(row)
        unclear |= {gene for gene, some in members.items() if not some and gene.upper() in measured.symbols.ambiguous}
        if row.found and row.found >= share * row.genes - 1e-9:  # 0.07 · 100 is above 7
            kept[name] = sorted({feature for some in members.values() for feature in some})
    if unclear:
        meanings = [f"{gene} ({' or '.join(measured.symbols.ambiguous[gene.upper()])})" for gene in sorted(unclear)]
        log.warning("%s: %d outdated symbols may mean several genes and are left: %s", file, len(meanings), ", ".join(meanings))
    return kept, report


def read_groups(path: str | Path) -> dict[str, dict[str, list[str]]]:
    """{grouping: {group: [feature, …]}} in file order, from what `build_groups` wrote. Raises `InputError` for a foreign file."""
    table = tables.read_table(path, ["grouping", "group", "feature"])
    groups: dict[str, dict[str, list[str]]] = {}
    for grouping, group, feature in table.itertuples(index=False):
        groups.setdefault(grouping, {}).setdefault(group, []).append(feature)
    return groups
