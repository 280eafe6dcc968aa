"""Studies of cBioPortal by its REST API: follow-up, expression z-scores, copy-number calls and mutations, for a list of genes.

API: https://www.cbioportal.org/api (Cerami et al., Cancer Discov 2012; Gao et al., Sci Signal 2013).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

from pipeline import tables
from pipeline.errors import InputError
from pipeline.identifiers import check_id
from pipeline.retrieve.client import Client
from pipeline.retrieve.genes import genes_of
from pipeline.retrieve.source import write_origin

log = logging.getLogger(__name__)

PAGE, MOST_PAGES = 100_000, 100
BATCH = 200  # genes a request: 200 × 1,000 samples are some 40 MB of JSON
ENDPOINTS = ("OS", "DSS", "PFS", "DFS")
COVARIATES = {"AGE": "age", "SEX": "is_female", "AJCC_PATHOLOGIC_TUMOR_STAGE": "stage", "GRADE": "grade"}
SEX = {"FEMALE": 1, "MALE": 0}
WORDS = {  # the flag without its number, as older studies have it
    "LIVING": 0,
    "DECEASED": 1,
    "DISEASEFREE": 0,
    "RECURRED/PROGRESSED": 1,
    "CENSORED": 0,
    "PROGRESSION": 1,
    "ALIVE OR DEAD TUMOR FREE": 0,
    "DEAD WITH TUMOR": 1,
}
SILENT = frozenset({"Silent", "Intron", "IGR", "RNA", "3'UTR", "5'UTR", "3'Flank", "5'Flank"})  # change no protein (our choice)


class Profile(NamedTuple):
    """A molecular profile of a study: what it is called, who was measured, and how our columns end."""

    name: str
    samples: str
    kind: str


PROFILES = (  # stable ids are "<study>_<name>"; z-scores against diploid samples are what the public MCAT tables hold
    Profile("rna_seq_v2_mrna_median_Zscores", "rna_seq_v2_mrna", "rnaseq"),
    Profile("gistic", "cna", "cnv"),
    Profile("mutations", "sequenced", "mut"),
)


def write_clinical(base: str, studies: Sequence[str], path: str | Path, client: Client) -> pd.DataFrame:
    """Write the patients of `studies`: patient_id, os_months, os_event, dss_…, pfs_…, dfs_…, age, is_female, stage, grade.

    A status is read by its number ("1:DECEASED") or, where it has none, its word. Raises `InputError` for a status that is neither,
    a time that is no number, and a patient of two studies.
    """
    facts: dict[str, dict[str, str]] = {}
    for study in studies:
        found = _attributes(base, study, client)
        if both := sorted(set(found) & set(facts)):
            raise InputError(f"patient {both[0]} is in two studies", expected="each patient once", remedy="Check `retrieve.study`.")
        facts |= found
    patients = sorted(facts)
    columns: dict[str, list[Any]] = {"patient_id": patients}
    for name in ENDPOINTS:
        columns[f"{name.lower()}_months"] = [_months(facts[p].get(f"{name}_MONTHS"), p, f"{name}_MONTHS") for p in patients]
        columns[f"{name.lower()}_event"] = [_event(facts[p].get(f"{name}_STATUS"), p, f"{name}_STATUS") for p in patients]
    for attribute, ours in COVARIATES.items():
        columns[ours] = [facts[p].get(attribute, "") for p in patients]
    columns["is_female"] = [SEX.get(str(cell).upper(), "") for cell in columns["is_female"]]
    table = pd.DataFrame(columns, dtype=object)
    table = table.mask(table.isin(tables.MISSING)).infer_objects()
    tables.write_table(table, path)
    write_origin(path, url=base, studies=list(studies))
    return table


def _attributes(base: str, study: str, client: Client) -> dict[str, dict[str, str]]:
    """Patient → attribute → value of one study, page by page."""
    facts: dict[str, dict[str, str]] = {}
    url, number = f"{base}/studies/{quote(study, safe='')}/clinical-data", 0
    while True:
        query = {"clinicalDataType": "PATIENT", "projection": "SUMMARY", "pageSize": PAGE, "pageNumber": number}
        page = _records(client.json(url, query=query), url, ("patientId", "clinicalAttributeId", "value"))
        for record in page:
            patient = check_id(str(record["patientId"]), "patient", file=url)
            facts.setdefault(patient, {})[str(record["clinicalAttributeId"])] = str(record["value"]).strip()
        if len(page) < PAGE:
            break
        number += 1
        if number == MOST_PAGES:
            raise InputError("the answer has no end", file=url, found=f"{number} full pages", expected=f"pages of {PAGE:,} records")
    if not facts:
        raise InputError("study has no patients", file=url, found=study, remedy="Check `retrieve.study`.")
    return facts


def _records(answer: Any, url: str, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    """A list of records that have `keys`; raises `InputError` for any other form."""
    right = isinstance(answer, list) and all(isinstance(record, dict) and all(key in record for key in keys) for record in answer)
    if not right:
        raise InputError("unknown form of answer", file=url, found=str(answer)[:80], expected="a list of records with " + ", ".join(keys))
    return answer


def _months(cell: str | None, patient: str, column: str) -> float | str:
    """A time as the portal states it; empty where it has none."""
    if cell is None or cell in tables.MISSING or cell.startswith("["):
        return ""
    try:
        return float(cell)
    except ValueError as error:
        raise InputError(f"wrong time of patient {patient}", column=column, found=cell, expected="months") from error


def _event(status: str | None, patient: str, column: str) -> int | str:
    if status is None or status in tables.MISSING or status.startswith("["):
        return ""
    number, _, word = status.partition(":")
    if word and number in ("0", "1"):
        return int(number)
    if status.upper() in WORDS:
        return WORDS[status.upper()]
    raise InputError(f"unknown status of patient {patient}", column=column, found=status, expected='"0:…", "1:…", or ' + ", ".join(WORDS))


def write_omics(
    base: str,
    studies: Sequence[str],
    gene_sets: Sequence[str | Path],
    path: str | Path,
    client: Client,
    *,
    sample_types: Collection[str] = ("01",),
) -> pd.DataFrame:
    """Write patients × features: ``<gene>_rnaseq`` (z-score), ``<gene>_cnv`` (GISTIC call −2 … 2), ``<gene>_mut`` (0/1).

    One sample a patient: of `sample_types` the lowest id. A patient who was not measured by a profile has empty cells in it, one who was
    sequenced and has no protein-changing mutation of a gene has 0. Genes are asked for by symbol; those the portal
    does not know are logged. Sorted by patient, kind and gene. Raises `InputError` without a gene in `gene_sets` (files), when
    the portal knows none of them, and when it knows no such study.
    """
    genes = genes_of(gene_sets)
    if not genes:
        raise InputError("no genes to ask the portal for", expected="files of gene sets", remedy="Set `retrieve.genes`.")
    names = _entrez(base, genes, client)
    blocks: list[pd.DataFrame] = []
    for study in studies:
        kinds = [_profile(base, study, profile, names, client, sample_types) for profile in PROFILES]
        blocks.append(pd.concat(kinds, axis=1))
    table = pd.concat(blocks).sort_index()
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()][0]
        raise InputError(f"patient {twice} is in two studies", expected="each patient once", remedy="Check `retrieve.study`.")
    table = table.dropna(axis=1, how="all").rename_axis("patient_id").reset_index()
    tables.write_table(table, path)
    write_origin(path, url=base, studies=list(studies), genes=len(names), sample_types=sorted(sample_types))
    return table


def _entrez(base: str, genes: Collection[str], client: Client) -> dict[int, str]:
    """Entrez id → symbol, in order of the symbols."""
    url, names = f"{base}/genes/fetch", {}
    for batch in _batches(sorted(set(genes))):
        answer = client.json(url, query={"geneIdType": "HUGO_GENE_SYMBOL", "projection": "SUMMARY"}, body=batch)
        names |= {int(r["entrezGeneId"]): str(r["hugoGeneSymbol"]) for r in _records(answer, url, ("entrezGeneId", "hugoGeneSymbol"))}
    absent = sorted(set(genes) - set(names.values()))
    if absent:
        log.warning("%d of %d genes are unknown to the portal: %s …", len(absent), len(set(genes)), ", ".join(absent[:10]))
    if not names:
        raise InputError("the portal knows none of the genes", file=url, found=", ".join(absent[:5]), expected="symbols of HGNC")
    return dict(sorted(names.items(), key=lambda item: item[1]))


def _batches(items: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), BATCH):
        yield list(items[start : start + BATCH])


def _profile(
    base: str, study: str, profile: Profile, names: Mapping[int, str], client: Client, sample_types: Collection[str]
) -> pd.DataFrame:
    """One profile of one study: patients × ``<gene>_<kind>``, NaN where nothing was measured."""
    measured = f"{study}_{profile.samples}"
    url = f"{base}/sample-lists/{quote(measured, safe='')}/sample-ids"
    patients = _one_sample(client.json(url), url, sample_types)
    mutations = profile.kind == "mut"
    table = pd.DataFrame(
        0.0 if mutations else np.nan, index=sorted(patients.values()), columns=[f"{gene}_{profile.kind}" for gene in names.values()]
    )
    endpoint = "mutations/fetch" if mutations else "molecular-data/fetch"
    url = f"{base}/molecular-profiles/{quote(f'{study}_{profile.name}', safe='')}/{endpoint}"
    rows = {patient: at for at, patient in enumerate(table.index)}
    columns = {entrez: at for at, entrez in enumerate(names)}
    values = table.to_numpy(copy=True)
    keys = ("sampleId", "entrezGeneId", "mutationType" if mutations else "value")
    for batch in _batches(list(names)):
        body = {"sampleListId": measured, "entrezGeneIds": batch}
        for record in _records(client.json(url, query={"projection": "SUMMARY"}, body=body), url, keys):
            value = float(record["mutationType"] not in SILENT) if mutations else _value(record["value"], url)
            if record["sampleId"] in patients and record["entrezGeneId"] in columns and not (mutations and not value):
                values[rows[patients[record["sampleId"]]], columns[record["entrezGeneId"]]] = value
    return pd.DataFrame(values, index=table.index, columns=table.columns)


def _value(cell: Any, url: str) -> float:
    """A number of the portal, which sends some as text; NaN where it has none."""
    try:
        return np.nan if cell is None or cell in tables.MISSING else float(cell)
    except (TypeError, ValueError) as error:
        raise InputError("value is not a number", file=url, found=cell, expected="a number") from error


def _one_sample(samples: Any, url: str, sample_types: Collection[str]) -> dict[str, str]:
    """Sample → patient, the lowest sample id of each patient among `sample_types` (TCGA-XX-XXXX-01)."""
    if not isinstance(samples, list):
        raise InputError("unknown form of answer", file=url, found=str(samples)[:80], expected="a list of sample ids")
    chosen: dict[str, str] = {}
    for sample in sorted(map(str, samples)):
        patient, _, kind = sample.rpartition("-")
        if kind[:2] in sample_types:
            chosen.setdefault(check_id(patient, "patient", file=url), sample)
    return {sample: patient for patient, sample in chosen.items()}
