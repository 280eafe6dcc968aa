"""What is fetched from where: the block `retrieve` of config.yaml with its defaults. Imports nothing heavy: the rules read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.errors import InputError, nearest
from pipeline.placeholders import filled

TOIL = "https://toil-xena-hub.s3.us-east-1.amazonaws.com/download"
PANCAN = "https://tcga-pancan-atlas-hub.s3.us-east-1.amazonaws.com/download"
JOINED = {"coadread": ["coad", "read"], "gbmlgg": ["gbm", "lgg"]}  # cohorts of the literature that are two projects of TCGA


@dataclass(frozen=True)
class RetrieveSettings:
    """Addresses, releases and patience; every key may be set under `retrieve` (`docs/retrieve.md`)."""

    gdc: str = "https://api.gdc.cancer.gov"
    cbioportal: str = "https://www.cbioportal.org/api"
    expression: str = f"{TOIL}/tcga_RSEM_gene_tpm.gz"  # log2(TPM + 0.001), genes × samples (Vivian et al. 2017)
    expression_offset: float = 0.001  # what was added before the logarithm
    probemap: str = f"{TOIL}/probeMap%2Fgencode.v23.annotation.gene.probemap"
    survival: str = f"{PANCAN}/Survival_SupplementalTable_S1_20171025_xena_sp"  # endpoints curated by Liu et al. 2018
    msigdb: str = "https://data.broadinstitute.org/gsea-msigdb/msigdb/release"
    msigdb_release: str = "2023.2.Hs"
    hgnc: str = "https://storage.googleapis.com/public-download-files/hgnc/tsv/tsv/hgnc_complete_set.txt"
    study: str = "{project}_tcga_pan_can_atlas_2018"  # of cBioPortal, by TCGA project
    projects: Mapping[str, list[str]] = field(default_factory=dict)  # further cohorts that join projects of TCGA
    sample_types: tuple[str, ...] = ("01",)  # of the barcode: 01 primary tumour; SKCM needs 06 beside it, LAML 03
    genes: tuple[str, ...] = ()  # files of gene sets below data_dir, to whose genes the tables are cut; none = all genes
    chunks: int = 8  # jobs that the slides are dealt to; each fetches one at a time
    tries: int = 6  # failures in a row without a byte gained
    wait: float = 1.0  # seconds before the second try, then doubled
    longest_wait: float = 300.0  # seconds
    timeout: float = 60.0  # seconds without a byte

    @classmethod
    def of(cls, block: Mapping[str, Any]) -> RetrieveSettings:
        """The settings of a configuration; raises `InputError` for a key that is none."""
        known = [f.name for f in fields(cls)]
        for key in block:
            if key not in known:
                raise InputError(
                    f"unknown key 'retrieve.{key}'", file="config.yaml", expected="one of " + ", ".join(known), remedy=nearest(key, known)
                )
        return cls(**block)

    def projects_of(self, cohort: str) -> list[str]:
        """TCGA's short names, lower case, behind the name of a cohort's folder: itself, or the projects it joins."""
        return [name.lower() for name in {**JOINED, **self.projects}.get(cohort, [cohort])]

    def studies_of(self, cohort: str) -> list[str]:
        """cBioPortal's studies of a cohort."""
        return [filled(self.study, "project", project) for project in self.projects_of(cohort)]

    def address_of(self, published: str) -> str:
        """Where a file that is kept as it is published comes from."""
        return {"expression.gz": self.expression, "probemap.tsv": self.probemap, "survival.tsv": self.survival}[published]
