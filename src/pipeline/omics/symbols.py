"""Gene symbols change: from outdated ones to the current ones, and the dates that spreadsheets make of some."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import tables
from pipeline.errors import InputError

_MONTH = "(jan|feb|mar|mrz|mär|apr|may|mai|jun|jul|aug|sept?|oct|okt|nov|dec|dez)"
# 1-Mar, 01. Mrz, 2-Sep-20 | Mar-01, Sep 2 | 2020-03-01 00:00:00 | 3/1/2020
_DATE = re.compile(
    rf"\d{{1,2}}[-. ]+{_MONTH}([-. ]+\d{{2,4}})?|{_MONTH}[-. ]+\d{{1,4}}"
    r"|\d{4}-\d\d-\d\d([ T].*)?|\d{1,2}/\d{1,2}/\d{2,4}",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Symbols:
    """renamed: outdated symbol → current one; ambiguous: outdated symbol → the several genes it may mean. All in capitals."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def current(self, symbol: str) -> str:
        """The current symbol in capitals: human symbols differ in more than case (C1orf61 is written C1ORF61 too)."""
        name, seen = symbol.upper(), set()
        while name in self.renamed and name not in seen:
            seen.add(name)
            name = self.renamed[name]
        return name


def read_aliases(*files: str | Path) -> Symbols:
    """Outdated symbols from tables, of which a later one has the last word.

    Two forms: columns `symbol` and `alias`, one outdated symbol a row; or HGNC's complete set (columns `symbol`, `prev_symbol`,
    `alias_symbol`, several symbols parted by ``|``). Within a file a current symbol is never an alias of another gene, and a previous
    symbol counts before an alias (DEC1 was DELEC1 and is a byname of BHLHE40). One that still means several genes is ambiguous.
    Raises `InputError` for a file that cannot be read or has neither form.
    """
    renamed: dict[str, str] = {}
    ambiguous: dict[str, tuple[str, ...]] = {}
    for file in files:
        approved, tiers = _read(Path(file))
        renamed = {alias: symbol for alias, symbol in renamed.items() if alias not in approved}
        settled = set(approved)
        for tier in tiers:
            for alias in sorted(tier.keys() - settled):
                if len(tier[alias]) == 1:
                    renamed[alias] = min(tier[alias])
                    ambiguous.pop(alias, None)
                elif alias not in renamed:
                    ambiguous[alias] = tuple(sorted(tier[alias]))
            settled |= tier.keys()
    return Symbols(renamed, ambiguous)


def _read(file: Path) -> tuple[set[str], list[dict[str, set[str]]]]:
    """The current symbols, and outdated symbol → current ones in two tiers: previous symbols, then aliases."""
    rows = tables.read_rows(file)
    header = next(rows)
    columns = [name for name in ("alias", "prev_symbol", "alias_symbol") if name in header]
    if "symbol" not in header or not columns:
        expected = "columns `symbol` and `alias`, or HGNC's `symbol`, `prev_symbol` and `alias_symbol`"
        raise InputError("is no table of gene symbols", file=file, found=", ".join(header[:5]), expected=expected)
    at, where = header.index("symbol"), {name: header.index(name) for name in columns}
    approved: set[str] = set()
    tiers: list[dict[str, set[str]]] = [{}, {}]
    for cells in rows:
        symbol = cells[at].strip().upper()
        approved.add(symbol)
        for name, column in where.items():
            tier = tiers[name == "alias_symbol"]
            for alias in filter(None, (part.strip().upper() for part in cells[column].split("|"))):
                tier.setdefault(alias, set()).add(symbol)
    return approved, tiers


def refuse_dates(genes: Iterable[str], file: str | Path) -> None:
    """Raise `InputError`, with all of them listed, where gene symbols have become dates (MARCH1 and MARC1 are both ``1-Mar``)."""
    dates = [gene for gene in genes if _DATE.fullmatch(gene.strip())]
    if dates:
        raise InputError(
            f"{len(dates)} gene symbols were made dates by a spreadsheet",
            file=file,
            found=", ".join(dates),
            expected="gene symbols",
            remedy="Take the table from its source again, without a spreadsheet; a date does not tell the gene (1-Mar: MARCH1 or MARC1).",
        )
