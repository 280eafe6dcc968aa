import gzip
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.omics.matrix import build_matrix, read_matrix

REAL = os.environ.get("SLIDE2SURV_REALDATA")
needs_real = [
    pytest.mark.realdata,
    pytest.mark.skipif(not REAL or not Path(REAL).is_dir(), reason="SLIDE2SURV_REALDATA does not name the folder of real data"),
]


def table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]).replace(" ", "\t") + "\n")
    return path


def message(specs, tmp_path) -> str:
    with pytest.raises(InputError) as error:
        build_matrix(specs, tmp_path / "omics.h5")
    return str(error.value).replace(f"{tmp_path}/", "")


def test_tables_are_joined_by_patient_id_and_what_one_lacks_is_nan(tmp_path):
    rna = table(tmp_path / "rna.tsv", "patient_id A B", "P3 1 2", "P1 3 4")
    cnv = table(tmp_path / "cnv.tsv", "case A", "P1 -2", "P2 1")
    built = build_matrix([{"file": rna, "kind": "rnaseq"}, {"file": cnv, "kind": "cnv", "patient_id": "case"}], tmp_path / "o.h5")
    assert built.features == ("A_rnaseq", "B_rnaseq", "A_cnv")
    assert built.patients == ("P1", "P2", "P3")
    np.testing.assert_array_equal(built.values, np.float32([[3, 4, -2], [np.nan, np.nan, 1], [1, 2, np.nan]]))
    back = read_matrix(tmp_path / "o.h5")
    assert (back.patients, back.features) == (built.patients, built.features)
    np.testing.assert_array_equal(back.values, built.values)
    assert back.values.dtype == np.float32


def test_columns_are_chosen_by_suffix_never_by_position(tmp_path):
    mixed = table(
        tmp_path / "m.tsv",
        "censorship A_rnaseq train patient_id B_mut survival_months A_cnv text",
        "1 .5 1 P1 0 12 -1 x",
        "0 .7 0 P2 1 3 2 y",
    )
    built = build_matrix([{"file": mixed}], tmp_path / "o.h5")
    assert built.features == ("A_rnaseq", "B_mut", "A_cnv")
    np.testing.assert_array_equal(built.values, np.float32([[0.5, 0, -1], [0.7, 1, 2]]))
    only = build_matrix([{"file": mixed, "suffixes": ["_cnv"]}], tmp_path / "o.h5")
    assert only.features == ("A_cnv",)


def test_a_patient_without_any_value_is_left_out(tmp_path, caplog):
    file = table(tmp_path / "m.tsv", "patient_id A B", "P1 NA NA", "P2 1 NA")
    assert build_matrix([{"file": file, "kind": "rnaseq"}], tmp_path / "o.h5").patients == ("P2",)
    assert "P1" in caplog.text


def test_of_repeated_rows_the_first_is_kept_and_the_rest_reported_when_asked(tmp_path, caplog):
    file = table(tmp_path / "m.tsv", "patient_id A", "P2 1", "P1 2", "P2 3")
    built = build_matrix([{"file": file, "kind": "rnaseq", "duplicates": "first"}], tmp_path / "o.h5")
    np.testing.assert_array_equal(built.values, [[2], [1]])
    assert "1 repeated rows are dropped, the first kept: P2" in caplog.text


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)), st.permutations(range(6)))
def test_shuffled_rows_of_any_table_change_no_byte(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("shuffle")
    mixed = [f"P{i} {i}.25 {i % 5 - 2} {'' if i == 3 else i % 2}" for i in range(6)]
    counts = [f"P{i} {i} {1000 * i + 7} {'' if i == 2 else 333 * i * i}" for i in range(6)]
    for name, a, b in (("a", range(6), range(6)), ("b", first, second)):
        specs = [
            {"file": table(folder / "mixed.tsv", "patient_id G1_rnaseq G1_cnv G2_mut", *(mixed[i] for i in a))},
            {"file": table(folder / "counts.tsv", "patient_id G2 G3 G4", *(counts[i] for i in b)), "kind": "rnaseq"},
        ]
        build_matrix(specs, folder / f"{name}.h5", folder / f"{name}.tsv")
    assert "counts.tsv\trnaseq\tcounts\tdetected\tlog2(CPM + 1)\t6\t3\t1\n" in (folder / "a.tsv").read_text()
    assert (folder / "a.h5").read_bytes() == (folder / "b.h5").read_bytes()
    assert (folder / "a.tsv").read_bytes() == (folder / "b.tsv").read_bytes()


def test_a_repeated_patient_is_an_error(tmp_path):
    file = table(tmp_path / "m.tsv", "patient_id A", "P1 1", "P1 1")
    assert message([{"file": file, "kind": "rnaseq"}], tmp_path) == (
        "m.tsv, row 3, column 'patient_id': patient appears twice (first in row 2); found 'P1', expected one row a patient. "
        "Keep one row; which one is right cannot be guessed."
    )


def test_a_cell_that_is_not_a_number_is_named(tmp_path):
    file = table(tmp_path / "m.tsv", "patient_id TP53 EGFR", "P1 1 2", "P2 3 high")
    assert message([{"file": file, "kind": "rnaseq"}], tmp_path) == (
        "m.tsv, row 3, column 'EGFR': cell is not a number; found 'high', expected a finite number or an empty cell. "
        "Correct the cell, or leave it empty."
    )


@pytest.mark.parametrize(
    "column",
    ["survival_months", "OS.time", "event", "censorship", "vital_status", "status", "train", "split", "time", "dss_event", "Death"],
)
def test_a_column_that_looks_like_a_label_is_refused_as_a_gene(tmp_path, column):
    file = table(tmp_path / "m.tsv", f"patient_id TP53 {column}", "P1 1 0")
    assert message([{"file": file, "kind": "rnaseq"}], tmp_path) == (
        f"m.tsv, column {column!r}: looks like an outcome or a split and is refused as a feature; expected features only. "
        "Remove the column from the table or list the feature columns; if it truly is a feature, rename it."
    )


def test_genes_that_a_spreadsheet_made_dates_are_refused_with_all_of_them_listed(tmp_path):
    plain = table(tmp_path / "p.tsv", "patient_id TP53 1-Mar 2-Sep", "P1 1 2 3")
    suffixed = table(tmp_path / "s.tsv", "patient_id TP53_cnv Mar-01_cnv", "P1 1 2")
    assert message([{"file": plain, "kind": "rnaseq"}], tmp_path) == (
        "p.tsv: 2 gene symbols were made dates by a spreadsheet; found '1-Mar, 2-Sep', expected gene symbols. "
        "Take the table from its source again, without a spreadsheet; a date does not tell the gene (1-Mar: MARCH1 or MARC1)."
    )
    assert message([{"file": suffixed}], tmp_path).startswith("s.tsv: 1 gene symbols were made dates by a spreadsheet; found 'Mar-01'")


@pytest.mark.parametrize("column", ["age", "is_female", "site", "Unnamed: 0", ""])
def test_clinical_and_index_columns_are_not_genes(tmp_path, column):
    file = tmp_path / "m.tsv"
    file.write_text(f"patient_id\tTP53\t{column}\nP1\t1\t0\n")
    assert message([{"file": file, "kind": "rnaseq"}], tmp_path).startswith(
        f"m.tsv, column {column!r}: is not a gene; expected one column a gene."
    )


@pytest.mark.parametrize("gene", ["TIMELESS", "OS9", "MARCH1", "HLA-DRA", "DEDD", "SURF1", "AGER", "TRAIP", "CENPA"])
def test_genes_with_suspicious_spellings_pass(tmp_path, gene):
    file = table(tmp_path / "m.tsv", f"patient_id {gene}", "P1 1")
    assert build_matrix([{"file": file, "kind": "rnaseq"}], tmp_path / "o.h5").features == (f"{gene}_rnaseq",)


def test_a_repeated_gene_is_an_error_within_a_table_and_between_tables(tmp_path):
    twice = table(tmp_path / "t.tsv", "patient_id A A", "P1 1 2")
    assert message([{"file": twice, "kind": "cnv"}], tmp_path).startswith("t.tsv, row 1, column 'A': column appears twice")
    one, two = (table(tmp_path / name, header, "P1 1") for name, header in (("1.tsv", "patient_id A"), ("2.tsv", "patient_id A_cnv")))
    assert message([{"file": one, "kind": "cnv"}, {"file": two}], tmp_path).startswith("2.tsv, column 'A_cnv': feature is already in 1.tsv")


def test_tables_without_features_or_values_and_unknown_settings_are_errors(tmp_path):
    plain = table(tmp_path / "p.tsv", "patient_id A B", "P1 1 2")
    assert message([{"file": plain}], tmp_path) == (
        "p.tsv: holds no feature; found 'A, B', expected columns that end in _rnaseq or _cnv or _mut. "
        "For a table of plain gene names set `kind: rnaseq`, `cnv` or `mut`."
    )
    assert "unknown kind of omics table; found 'rna', expected rnaseq or cnv or mut" in message([{"file": plain, "kind": "rna"}], tmp_path)
    assert "unknown setting of `duplicates`" in message([{"file": plain, "kind": "cnv", "duplicates": "last"}], tmp_path)
    empty = table(tmp_path / "e.tsv", "patient_id A", "P1 NA")
    assert message([{"file": empty, "kind": "cnv"}], tmp_path).startswith("e.tsv: holds no value")
    assert message([], tmp_path).startswith("no omics table is named")


def test_a_foreign_file_is_not_read_as_a_matrix(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    for name in ("x.h5", "none.h5"):
        with pytest.raises(InputError, match="expected an HDF5 file with `values`, `patient_id` and `feature`"):
            read_matrix(tmp_path / name)


# about 5 s for 500 patients alone; the rest is room for a busy machine
@pytest.mark.parametrize("patients, seconds", [pytest.param(100, 3, marks=pytest.mark.slow), pytest.param(500, 12, marks=pytest.mark.long)])
def test_five_hundred_patients_and_twenty_thousand_genes_take_seconds(tmp_path, patients, seconds):
    values = np.random.default_rng(0).normal(size=(patients, 20_000)).astype("U8")
    with gzip.open(tmp_path / "w.tsv.gz", "wt", compresslevel=1) as file:
        file.write("\t".join(["patient_id", *(f"G{i}" for i in range(20_000))]) + "\n")
        file.writelines("\t".join([f"P{i:03d}", *row]) + "\n" for i, row in enumerate(values))
    start = time.process_time()
    assert build_matrix([{"file": tmp_path / "w.tsv.gz", "kind": "rnaseq"}], tmp_path / "o.h5").values.shape == (patients, 20_000)
    assert time.process_time() - start < seconds


class TestRealTables:
    pytestmark = needs_real

    def test_blca_has_373_patients_and_3062_features(self, tmp_path):
        built = build_matrix([{"file": f"{REAL}/tcga_mcat/blca/omics.tsv.gz"}], tmp_path / "o.h5")
        kinds = [name.rsplit("_", 1)[1] for name in built.features]
        assert built.values.shape == (373, 3062)
        assert (kinds.count("rnaseq"), kinds.count("cnv"), kinds.count("mut")) == (2814, 248, 0)

    def test_survpath_blca_is_360_by_1577_in_log2_tpm(self, tmp_path):
        built = build_matrix([{"file": f"{REAL}/tcga_survpath/blca/rna.tsv.gz", "kind": "rnaseq"}], tmp_path / "o.h5")
        assert built.values.shape == (360, 1577)
        assert built.values.min() == pytest.approx(np.log2(0.001), abs=1e-4)

    def test_survpath_coadread_repeats_three_patients(self, tmp_path, caplog):
        spec = {"file": f"{REAL}/tcga_survpath/coadread/rna.tsv.gz", "kind": "rnaseq"}
        with pytest.raises(InputError, match="patient appears twice"):
            build_matrix([spec], tmp_path / "o.h5")
        assert len(build_matrix([{**spec, "duplicates": "first"}], tmp_path / "o.h5").patients) == 317
        assert all(case in caplog.text for case in ("TCGA-G4-6317", "TCGA-G5-6572", "TCGA-NH-A8F7"))
