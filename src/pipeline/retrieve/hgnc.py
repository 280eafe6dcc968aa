"""HGNC's complete set: approved symbols with the outdated ones and aliases that older gene sets still use."""

from __future__ import annotations

from pathlib import Path

from pipeline import tables
from pipeline.errors import InputError
from pipeline.retrieve.client import Client

COLUMNS = ("hgnc_id", "symbol", "alias_symbol", "prev_symbol")


def fetch_aliases(url: str, path: str | Path, client: Client) -> None:
    """Fetch the complete set to `path`, as published; raises `InputError` when its header lacks one of `COLUMNS`.

    It changes every week at one address: its ``.source.yaml`` says by SHA-256 which one this is.
    """
    client.download(url, path)
    header = next(tables.read_rows(path))
    if absent := [column for column in COLUMNS if column not in header]:
        remedy = "Check `retrieve.hgnc`: it must lead to hgnc_complete_set.txt."
        raise InputError("is not HGNC's complete set", file=path, found=", ".join(header[:6]), expected=", ".join(absent), remedy=remedy)
