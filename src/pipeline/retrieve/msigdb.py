"""Gene sets of MSigDB by collection and release (Liberzon et al., Cell Syst 2015), as GMT."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from pipeline.errors import InputError
from pipeline.omics.groups import read_gene_sets
from pipeline.retrieve.client import Client

log = logging.getLogger(__name__)

RELEASE = re.compile(r"\d{4}\.\d+\.(Hs|Mm)|\d+(\.\d+)*")
COLLECTION = re.compile(r"[a-z0-9]+(\.[a-z0-9_]+)*")


def gene_sets_url(base: str, release: str, collection: str) -> str:
    """The address of a collection, e.g. ``h.all`` (Hallmark) or ``c2.cp.reactome``, of a release, e.g. ``2023.2.Hs``.

    >>> gene_sets_url("https://example.org", "2023.2.Hs", "h.all")
    'https://example.org/2023.2.Hs/h.all.v2023.2.Hs.symbols.gmt'
    """
    for value, pattern, key in ((release, RELEASE, "msigdb_release"), (collection, COLLECTION, "collection")):
        if not pattern.fullmatch(value):
            raise InputError(
                f"not a {key} of MSigDB", found=value, expected="such as 2023.2.Hs, h.all, c2.cp.reactome", remedy="Check `retrieve`."
            )
    return f"{base}/{release}/{collection}.v{release}.symbols.gmt"


def fetch_gene_sets(base: str, release: str, collection: str, path: str | Path, client: Client) -> int:
    """Fetch a collection to `path` and return its number of sets; raises `InputError` when it is not GMT."""
    client.download(gene_sets_url(base, release, collection), path)
    sets = read_gene_sets(path)
    log.info("%s of MSigDB %s: %d sets, %d genes", collection, release, len(sets), len({gene for genes in sets.values() for gene in genes}))
    return len(sets)
