"""Which genes are wanted: those of files of gene sets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.omics.groups import read_gene_sets


def genes_of(files: Iterable[str | Path]) -> frozenset[str]:
    """All genes of the sets in `files` (GMT or tables, `read_gene_sets`); empty without a file."""
    return frozenset(gene for file in files for genes in read_gene_sets(file).values() for gene in genes)
