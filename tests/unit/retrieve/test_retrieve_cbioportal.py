"""cBioPortal: a server with two studies, asked as its API documents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_server import Server, cut, status

from pipeline import tables
from pipeline.errors import InputError
from pipeline.retrieve import cbioportal
from pipeline.retrieve.client import Client

GENES = {"TP53": 7157, "FGFR3": 2261, "KDM6A": 7403}
PATIENTS = ["TCGA-2F-0001", "TCGA-2F-0002", "TCGA-2F-0003"]
CLINICAL = {
    "TCGA-2F-0001": {
        "OS_MONTHS": "12.5",
        "OS_STATUS": "1:DECEASED",
        "DSS_STATUS": "0:ALIVE OR DEAD TUMOR FREE",
        "AGE": "70",
        "SEX": "Female",
    },
    "TCGA-2F-0002": {"OS_MONTHS": "3", "OS_STATUS": "LIVING", "PFS_MONTHS": "1", "PFS_STATUS": "1:PROGRESSION", "SEX": "Male"},
    "TCGA-2F-0003": {"OS_MONTHS": "[Not Available]", "OS_STATUS": "[Not Available]", "GRADE": "High Grade"},
}
LISTS = {
    "rna_seq_v2_mrna": ["TCGA-2F-0001-01", "TCGA-2F-0001-06", "TCGA-2F-0002-01"],
    "cna": ["TCGA-2F-0001-01", "TCGA-2F-0002-01", "TCGA-2F-0003-06"],
    "sequenced": ["TCGA-2F-0002-01", "TCGA-2F-0003-01"],
}
VALUES = {
    "rna_seq_v2_mrna_median_Zscores": {
        ("TCGA-2F-0001-01", "TP53"): 1.25,
        ("TCGA-2F-0001-06", "TP53"): 99.0,
        ("TCGA-2F-0002-01", "TP53"): "-0.5",
    },
    "gistic": {("TCGA-2F-0001-01", "TP53"): -2, ("TCGA-2F-0002-01", "FGFR3"): 1, ("TCGA-2F-0003-06", "TP53"): 2},
    "mutations": {("TCGA-2F-0002-01", "TP53"): "Missense_Mutation", ("TCGA-2F-0003-01", "FGFR3"): "Silent"},
}


def serve(server: Server, study: str = "blca", clinical: dict[str, dict[str, str]] = CLINICAL) -> None:
    def attributes(query: dict[str, str], _: Any) -> Any:
        assert query["clinicalDataType"] == "PATIENT"
        facts = [(p, a, v) for p in sorted(clinical) for a, v in clinical[p].items()]
        size, number = int(query["pageSize"]), int(query["pageNumber"])
        keys = ("patientId", "clinicalAttributeId", "value")
        return [dict(zip(keys, fact, strict=True)) | {"studyId": study} for fact in facts[size * number : size * (number + 1)]]

    def genes(query: dict[str, str], body: Any) -> Any:
        assert query["geneIdType"] == "HUGO_GENE_SYMBOL"
        return [{"entrezGeneId": GENES[g], "hugoGeneSymbol": g, "type": "protein-coding"} for g in body if g in GENES]

    server.services[f"/studies/{study}/clinical-data"] = attributes
    server.services["/genes/fetch"] = genes
    for name, samples in LISTS.items():
        server.services[f"/sample-lists/{study}_{name}/sample-ids"] = lambda q, b, samples=samples: samples
    for profile in cbioportal.PROFILES:
        mutations = profile.kind == "mut"

        def fetch(_: dict[str, str], body: Any, profile=profile, mutations=mutations) -> Any:
            assert body["sampleListId"] == f"{study}_{profile.samples}"
            found = {(s, GENES[g]): v for (s, g), v in VALUES[profile.name].items() if GENES[g] in body["entrezGeneIds"]}
            key = "mutationType" if mutations else "value"
            return [{"sampleId": s, "patientId": s[:-3], "entrezGeneId": e, "studyId": study, key: v} for (s, e), v in found.items()]

        path = f"/molecular-profiles/{study}_{profile.name}/{'mutations' if mutations else 'molecular-data'}/fetch"
        server.services[path] = fetch


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    (tmp_path / "sets.gmt").write_text("one\tna\tTP53\tKDM6A\ntwo\tna\tFGFR3\tNOGENE\n")
    return tmp_path / "sets.gmt"


def test_follow_up_and_covariates(server: Server, client: Client, tmp_path: Path) -> None:
    serve(server)
    cbioportal.write_clinical(server.url, ["blca"], tmp_path / "c.tsv", client)
    table = tables.read_table(tmp_path / "c.tsv", patient_id="patient_id").set_index("patient_id").fillna("")
    assert table.loc["TCGA-2F-0001", ["os_months", "os_event", "dss_months", "dss_event", "age", "is_female"]].tolist() == [
        "12.5",
        "1",
        "",
        "0",
        "70",
        "1",
    ]
    assert table.loc["TCGA-2F-0002", ["os_months", "os_event", "pfs_months", "pfs_event", "is_female"]].tolist() == [
        "3",
        "0",
        "1",
        "1",
        "0",
    ]
    assert table.loc["TCGA-2F-0003", ["os_months", "os_event", "grade"]].tolist() == ["", "", "High Grade"]


def test_pages_of_clinical_data_are_joined(server: Server, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server)
    whole = cbioportal.write_clinical(server.url, ["blca"], tmp_path / "c.tsv", client)
    monkeypatch.setattr(cbioportal, "PAGE", 4)
    server.faults["/studies/blca/clinical-data"] += [status(429, Retry_After="1"), cut(30)]
    assert cbioportal.write_clinical(server.url, ["blca"], tmp_path / "d.tsv", client).equals(whole)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"OS_STATUS": "gone"}, "column 'OS_STATUS': unknown status of patient TCGA-2F-0009; found 'gone'"),
        ({"OS_MONTHS": "long"}, "column 'OS_MONTHS': wrong time of patient TCGA-2F-0009; found 'long', expected months"),
    ],
)
def test_unknown_words_are_refused(server: Server, client: Client, tmp_path: Path, facts: dict[str, str], message: str) -> None:
    serve(server, clinical={"TCGA-2F-0009": facts})
    with pytest.raises(InputError) as error:
        cbioportal.write_clinical(server.url, ["blca"], tmp_path / "c.tsv", client)
    assert message in str(error.value)


def test_a_patient_id_that_is_a_path_is_refused(server: Server, client: Client, tmp_path: Path) -> None:
    serve(server, clinical={"../x": {"OS_MONTHS": "1"}})
    with pytest.raises(InputError, match="not a usable patient id"):
        cbioportal.write_clinical(server.url, ["blca"], tmp_path / "c.tsv", client)


@pytest.mark.parametrize("batch", [1, 2, 200])
def test_omics_tell_not_mutated_from_not_measured(
    server: Server, client: Client, tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(cbioportal, "BATCH", batch)
    serve(server)
    cbioportal.write_omics(server.url, ["blca"], [sets], tmp_path / "o.tsv.gz", client)
    table = tables.read_table(tmp_path / "o.tsv.gz", patient_id="patient_id").set_index("patient_id").astype(float)
    assert list(table.index) == PATIENTS
    assert list(table.columns) == ["TP53_rnaseq", "FGFR3_cnv", "TP53_cnv", "FGFR3_mut", "KDM6A_mut", "TP53_mut"]
    nan = np.nan
    expected = {
        "TCGA-2F-0001": [1.25, nan, -2, nan, nan, nan],
        "TCGA-2F-0002": [-0.5, 1, nan, 0, 0, 1],
        "TCGA-2F-0003": [nan, nan, nan, 0, 0, 0],
    }
    for patient, row in expected.items():
        np.testing.assert_array_equal(table.loc[patient], row)


def test_metastases_only_where_they_are_asked_for(server: Server, client: Client, tmp_path: Path, sets: Path) -> None:
    serve(server)
    table = cbioportal.write_omics(server.url, ["blca"], [sets], tmp_path / "o.tsv", client, sample_types=["01", "06"])
    assert table.set_index("patient_id").loc["TCGA-2F-0003", "TP53_cnv"] == 2
    assert table.set_index("patient_id").loc["TCGA-2F-0001", "TP53_rnaseq"] == 1.25, "the primary tumour comes first"


def test_a_patient_of_two_studies_is_refused(server: Server, client: Client, tmp_path: Path, sets: Path) -> None:
    serve(server)
    serve(server, "other")
    with pytest.raises(InputError, match="patient TCGA-2F-0001 is in two studies"):
        cbioportal.write_clinical(server.url, ["blca", "other"], tmp_path / "c.tsv", client)
    with pytest.raises(InputError, match="patient TCGA-2F-0001 is in two studies"):
        cbioportal.write_omics(server.url, ["blca", "other"], [sets], tmp_path / "o.tsv", client)


def test_an_unknown_study_or_no_gene_is_said(server: Server, client: Client, tmp_path: Path, sets: Path) -> None:
    serve(server)
    with pytest.raises(InputError, match=r"refused by .*/studies/bl%2Fca/clinical-data; found 'status 404"):
        cbioportal.write_clinical(server.url, ["bl/ca"], tmp_path / "c.tsv", client)
    with pytest.raises(InputError, match=r"no genes to ask the portal for.*Set `retrieve.genes`"):
        cbioportal.write_omics(server.url, ["blca"], [], tmp_path / "o.tsv", client)
    (tmp_path / "none.gmt").write_text("one\tna\tNOGENE\n")
    with pytest.raises(InputError, match="the portal knows none of the genes; found 'NOGENE'"):
        cbioportal.write_omics(server.url, ["blca"], [tmp_path / "none.gmt"], tmp_path / "o.tsv", client)


@pytest.mark.parametrize("answer", [{"message": "error"}, ["x"], [{"sampleId": "TCGA-2F-0001-01"}]])
def test_an_answer_of_unknown_form_is_refused(server: Server, client: Client, tmp_path: Path, sets: Path, answer: Any) -> None:
    serve(server)
    server.services["/molecular-profiles/blca_gistic/molecular-data/fetch"] = lambda q, b: answer
    with pytest.raises(InputError, match="unknown form of answer"):
        cbioportal.write_omics(server.url, ["blca"], [sets], tmp_path / "o.tsv", client)
