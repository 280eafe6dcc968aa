"""Xena's files to tables of patients: by hand, and from real values."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import tables
from pipeline.errors import InputError
from pipeline.retrieve.xena import write_clinical, write_expression

HEADER = (
    "sample,_PATIENT,cancer type abbreviation,age_at_initial_pathologic_diagnosis,gender,ajcc_pathologic_tumor_stage,clinical_stage,"
    "histological_grade,OS,OS.time,DSS,DSS.time,DFI,DFI.time,PFI,PFI.time,Redaction"
)
ROWS = [
    "TCGA-2F-0003-01,TCGA-2F-0003,BLCA,61,MALE,Stage II,[Not Applicable],High Grade,0,100,0,100,,,0,90,",
    "TCGA-2F-0001-01,TCGA-2F-0001,BLCA,70,FEMALE,Stage IV,[Not Applicable],[Unknown],1,12,1,12,#N/A,#N/A,1,5,",
    "TCGA-2F-0001-11,TCGA-2F-0001,BLCA,70,FEMALE,Stage IV,[Not Applicable],[Unknown],1,12,1,12,#N/A,#N/A,1,5,",
    "TCGA-4Z-0002-06,TCGA-4Z-0002,BLCA,55,FEMALE,[Discrepancy],,Low Grade,0,30,NA,30,0,30,0,30,",
    "TCGA-4Z-0009-01,TCGA-4Z-0009,BLCA,55,FEMALE,Stage I,,Low Grade,0,30,0,30,0,30,0,30,Redacted",
    "TCGA-AA-0004-01,TCGA-AA-0004,COAD,44,MALE,Stage I,,,0,7,0,7,0,7,0,7,",
    "TCGA-AF-0005-01,TCGA-AF-0005,READ,45,MALE,Stage I,,,1,8,1,8,0,8,1,8,",
]
SURVIVAL = "\n".join([HEADER, *ROWS, ""]).replace(",", "\t")
PROBES = "id,gene,chrom,chromStart\nENSG01.1,TP53,chr17,1\nENSG02.5,A1BG,chr19,1\nENSG03.2,A1BG,chr19,5\n".replace(",", "\t")
MATRIX = (
    "sample\tTCGA-4Z-0002-06\tTCGA-2F-0003-01\tGTEX-1\tTCGA-2F-0001-11\tTCGA-2F-0001-01\tTCGA-AA-0004-01\n"
    "ENSG02.5\t1\t2\t9\t8\t3\t4\nENSG01.1\t0.5\t-9.9658\t9\t8\t5.25\t6\nENSG03.2\t1\t-9.9658\t9\t8\t3\t4\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "survival").write_text(SURVIVAL)
    (tmp_path / "probemap").write_text(PROBES)
    (tmp_path / "matrix.gz").write_bytes(gzip.compress(MATRIX.encode()))
    return tmp_path


def cut_matrix(folder: Path, projects: list[str], **options) -> pd.DataFrame:
    files = (folder / "matrix.gz", folder / "probemap", folder / "survival")
    write_expression(*files, projects, folder / "expression.tsv.gz", **options)
    return tables.read_table(folder / "expression.tsv.gz").set_index("patient_id").astype(float)


def test_expression_is_cut_to_the_patients_and_ids_become_symbols(folder: Path) -> None:
    table = cut_matrix(folder, ["blca"])
    assert list(table.index) == ["TCGA-2F-0001", "TCGA-2F-0003"], "normal tissue, a metastasis, GTEx and another project are left out"
    assert list(table.columns) == ["A1BG", "TP53"]
    assert list(table["TP53"]) == [5.25, -9.9658], "values are not touched"


def test_two_loci_of_a_symbol_add_up_as_abundances(folder: Path) -> None:
    table = cut_matrix(folder, ["blca"])
    tpm = 2**3 - 0.001
    assert table.loc["TCGA-2F-0001", "A1BG"] == pytest.approx(np.log2(2 * tpm + 0.001), abs=1e-9)
    assert table.loc["TCGA-2F-0003", "A1BG"] == pytest.approx(2, abs=1e-6), "a silent second locus changes nothing"


def test_other_sample_types_and_joined_projects(folder: Path) -> None:
    assert list(cut_matrix(folder, ["blca"], sample_types=["01", "06"]).index) == ["TCGA-2F-0001", "TCGA-2F-0003", "TCGA-4Z-0002"]
    assert list(cut_matrix(folder, ["coad", "read"]).index) == ["TCGA-AA-0004"]


def test_gene_sets_cut_the_columns(folder: Path) -> None:
    (folder / "sets.gmt").write_text("one\tna\tTP53\tMUT\n")
    assert list(cut_matrix(folder, ["blca"], gene_sets=[folder / "sets.gmt"]).columns) == ["TP53"]
    (folder / "sets.gmt").write_text("one\tna\tMUT\n")
    with pytest.raises(InputError, match="none of the wanted genes is measured; expected some of MUT"):
        cut_matrix(folder, ["blca"], gene_sets=[folder / "sets.gmt"])


def test_the_order_of_rows_and_columns_changes_no_byte(folder: Path) -> None:
    cut_matrix(folder, ["blca"])
    write_clinical(folder / "survival", ["blca"], folder / "clinical.tsv")
    first = [(folder / name).read_bytes() for name in ("expression.tsv.gz", "clinical.tsv")]
    generator = np.random.default_rng(0)
    header, *rows = SURVIVAL.splitlines()
    (folder / "survival").write_text("\n".join([header, *generator.permutation(rows)]) + "\n")
    cells = np.array([line.split("\t") for line in MATRIX.splitlines()])
    cells = cells[np.r_[0, 1 + generator.permutation(3)]][:, np.r_[0, 1 + generator.permutation(6)]]
    (folder / "matrix.gz").write_bytes(gzip.compress("\n".join("\t".join(row) for row in cells).encode() + b"\n"))
    cut_matrix(folder, ["blca"])
    write_clinical(folder / "survival", ["blca"], folder / "clinical.tsv")
    assert [(folder / name).read_bytes() for name in ("expression.tsv.gz", "clinical.tsv")] == first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ENSG02.5\t1\t", "ENSG99\t1\t", "matrix.gz, row 2, column 'sample': id is not in probemap; found 'ENSG99'"),
        ("5.25", "high", "matrix.gz, row 3: cell is not a number"),
        ("5.25", "inf", "matrix.gz, row 3: cell is not finite"),
        ("TCGA-2F", "TCGA-XX", "matrix.gz, row 1: has no sample of the cohort"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "matrix.gz").write_bytes(gzip.compress(MATRIX.replace(old, new).encode()))
    with pytest.raises(InputError) as error:
        cut_matrix(folder, ["blca"])
    assert message in str(error.value)
    assert not (folder / "expression.tsv.gz").exists()


def test_clinical_has_one_row_a_patient_in_days(folder: Path) -> None:
    table = write_clinical(folder / "survival", ["blca"], folder / "clinical.tsv")
    table = tables.read_table(folder / "clinical.tsv", patient_id="patient_id").fillna("")
    assert list(table["patient_id"]) == ["TCGA-2F-0001", "TCGA-2F-0003", "TCGA-4Z-0002"], "one row a patient, the redacted one is gone"
    first = table.set_index("patient_id").loc["TCGA-2F-0001"]
    assert first[["os_days", "os_event", "dfi_days", "dfi_event", "pfi_days", "pfi_event"]].tolist() == ["12", "1", "", "", "5", "1"]
    assert first[["age", "is_female", "stage", "clinical_stage", "grade"]].tolist() == ["70", "1", "Stage IV", "", ""]
    assert first[["cancer_type", "site"]].tolist() == ["BLCA", "2F"]
    assert table.set_index("patient_id").loc["TCGA-4Z-0002", ["dss_event", "stage"]].tolist() == ["", ""]
    source = yaml.safe_load((folder / "clinical.tsv.source.yaml").read_text())
    assert source["projects"] == ["blca"]
    assert list(source["made_from"]) == ["survival"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t1\t12\t1", "\t2\t12\t1", "column 'OS': wrong value of TCGA-2F-0001; found '2', expected 0 or 1"),
        ("\t1\t12\t1", "\t1\tlong\t1", "column 'OS.time': wrong value of TCGA-2F-0001; found 'long', expected days"),
        ("TCGA-2F-0001-01", "0001", "row 3, column 'sample': not a sample of TCGA; found '0001'"),
        ("DSS.time", "DSS.days", "lacks the column 'DSS.time'"),
    ],
)
def test_a_survival_table_that_does_not_fit_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "survival").write_text(SURVIVAL.replace(old, new))
    with pytest.raises(InputError) as error:
        write_clinical(folder / "survival", ["blca"], folder / "clinical.tsv")
    assert message in str(error.value)


def test_an_unknown_project_is_answered_with_those_there_are(folder: Path) -> None:
    with pytest.raises(InputError, match="no such project; found 'blac', expected BLCA, COAD, READ"):
        write_clinical(folder / "survival", ["blac"], folder / "clinical.tsv")


@pytest.mark.realdata
def test_real_values_come_back_as_they_were(realdata: Path, tmp_path: Path) -> None:
    """Toil's values of BLCA, put into the form of the hub, are found again to the last digit."""
    truth = tables.read_table(realdata / "tcga_survpath/blca/rna.tsv.gz", patient_id="patient_id").set_index("patient_id")
    truth = truth.iloc[:60, :150]
    matrix = truth.T.rename(columns=lambda patient: f"{patient}-01")
    matrix.index = [f"ENSG{i:011d}.1" for i in range(len(matrix))]
    tables.write_table(pd.DataFrame({"id": matrix.index, "gene": truth.columns}), tmp_path / "probemap")
    tables.write_table(matrix.rename_axis("sample").reset_index(), tmp_path / "matrix.gz")
    rows = "".join(f"{patient}-01\tBLCA" + "\t0\t1" * 4 + "\n" for patient in truth.index)
    header = "sample\tcancer type abbreviation\tOS\tOS.time\tDSS\tDSS.time\tDFI\tDFI.time\tPFI\tPFI.time\n"
    (tmp_path / "survival").write_text(header + rows)
    found = cut_matrix(tmp_path, ["blca"])
    assert found.equals(truth.astype(float).sort_index().sort_index(axis=1).rename_axis("patient_id"))
