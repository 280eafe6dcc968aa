import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.omics.matrix import build_matrix
from pipeline.omics.units import UNITS, settle, transformed
from pipeline.tables import read_table

RNG = np.random.default_rng(0)
ABUNDANCE = RNG.lognormal(0, 2, (40, 600))
EXPRESSION = {
    "counts": RNG.poisson(ABUNDANCE * 50).astype(float),
    "tpm": ABUNDANCE / ABUNDANCE.sum(axis=1, keepdims=True) * 1e6,
    "log2": np.log2(ABUNDANCE + 1) * 2,
    "zscore": RNG.normal(0, 1, (40, 600)),
}
OTHER = {
    "cnv_calls": RNG.integers(-2, 3, (40, 50)).astype(float),
    "cnv_log2": RNG.normal(0, 0.4, (40, 50)),
    "binary": (RNG.random((40, 50)) < 0.1).astype(float),
}


@pytest.mark.parametrize("unit", [*EXPRESSION, *OTHER])
def test_each_unit_is_told_from_the_numbers_missing_cells_or_not(unit):
    values = {**EXPRESSION, **OTHER}[unit].copy()
    settled = settle(values, UNITS[unit].kind, "auto", "t.tsv")
    assert (settled.unit, settled.source, settled.transform) == (unit, "detected", UNITS[unit].transform)
    values[::7, ::5] = np.nan
    if unit != "tpm":  # whose sum is its mark
        assert settle(values, UNITS[unit].kind, "auto", "t.tsv").unit == unit


def test_z_scores_of_linear_expression_are_z_scores_in_spite_of_values_in_the_thousands():
    linear = RNG.lognormal(2, 1, (300, 200))
    values = (linear - linear.mean(axis=0)) / linear.std(axis=0)
    values[3, 7] = 14_070.8
    assert settle(values, "rnaseq", "auto", "t.tsv").unit == "zscore"


def test_the_floor_of_xena_is_a_logarithm_though_it_is_negative():
    values = np.log2(np.where(RNG.random((50, 300)) < 0.1, 0, ABUNDANCE[:, :300].repeat(2, axis=0)[:50]) + 0.001)
    assert settle(values, "rnaseq", "auto", "t.tsv").unit == "log2"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("rnaseq", OTHER["cnv_calls"]),
        ("rnaseq", RNG.random((40, 50))),
        ("cnv", RNG.integers(0, 7, (40, 50)).astype(float)),
        ("mut", RNG.integers(0, 7, (40, 50)).astype(float)),
    ],
)
def test_what_no_rule_knows_is_kept_and_said(kind, values, caplog):
    settled = settle(values, kind, "auto", "t.tsv")
    assert (settled.unit, settled.source, settled.transform) == ("unknown", "unknown", "none")
    assert f"t.tsv: the unit of the {kind} values is unknown and they are kept as they are" in caplog.text


def test_linear_numbers_of_a_unit_that_cannot_be_told_are_refused():
    """FPKM, RSEM, TPM of a panel: linear, on a scale that no sum tells."""
    with pytest.raises(InputError, match=r"cannot be told, and they are linear; found 'numbers from .* State `unit: tpm`"):
        settle(ABUNDANCE, "rnaseq", "auto", "t.tsv")
    assert settle(ABUNDANCE, "rnaseq", "tpm", "t.tsv").transform == "log2(x + 1)"


@pytest.mark.parametrize("stated", EXPRESSION)
@pytest.mark.parametrize("true", EXPRESSION)
def test_a_stated_unit_that_the_numbers_contradict_is_refused(stated, true):
    if stated == true:
        assert settle(EXPRESSION[true], "rnaseq", stated, "t.tsv").source == "stated"
        return
    with pytest.raises(InputError) as error:
        settle(EXPRESSION[true], "rnaseq", stated, "t.tsv")
    assert str(error.value).startswith(f"t.tsv: the rnaseq values are not {stated}; found '")
    assert f"expected {UNITS[stated].expected}. Correct `unit`, or leave it out to have it detected." in str(error.value)


def test_the_refusal_says_what_was_seen():
    with pytest.raises(InputError) as error:
        settle(np.array([[0.0, 1.0], [2.0, 1.0]]), "mut", "binary", "m.tsv")
    assert str(error.value) == (
        "m.tsv: the mut values are not binary; found 'whole numbers from 0 to 2, sum of a patient about 2, mean of a feature about 1 "
        "and sd about 0.5', expected 0 or 1. Correct `unit`, or leave it out to have it detected."
    )


def test_estimated_counts_need_not_be_whole_when_they_are_stated():
    assert settle(EXPRESSION["counts"] + 0.25, "rnaseq", "counts", "t.tsv").transform == "log2(CPM + 1)"


def test_counts_become_logarithms_of_counts_per_million_of_the_patient():
    counts = np.array([[1.0, 3.0, np.nan], [10.0, 0.0, 30.0], [np.nan, np.nan, np.nan]])
    expected = np.log2(np.array([[250_000, 750_000, np.nan], [250_000, 0, 750_000], [np.nan] * 3]) + 1)
    result = transformed(counts, "log2(CPM + 1)", ["A", "B", "C"], "t.tsv")
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert result.dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 1000))
def test_depth_does_not_change_what_counts_become_and_no_patient_changes_another(seed, depth):
    counts = np.random.default_rng(seed).integers(0, 500, (4, 6)).astype(float) + 1
    names = list("ABCD")
    base = transformed(counts, "log2(CPM + 1)", names, "t.tsv")
    counts[2] *= depth
    np.testing.assert_allclose(transformed(counts, "log2(CPM + 1)", names, "t.tsv"), base, rtol=1e-5)
    counts[2] = 7
    np.testing.assert_array_equal(transformed(counts, "log2(CPM + 1)", names, "t.tsv")[[0, 1, 3]], base[[0, 1, 3]])


def test_a_patient_without_any_count_is_named():
    with pytest.raises(InputError) as error:
        transformed(np.array([[1.0, 2.0], [0.0, 0.0]]), "log2(CPM + 1)", ["A", "B"], "t.tsv")
    assert str(error.value) == "t.tsv: patient B has no count above 0; expected counts. Remove the row: the measurement has failed."


def write(path, values, suffix=""):
    header = "\t".join(["patient_id", *(f"G{i}{suffix}" for i in range(values.shape[1]))])
    rows = ["\t".join([f"P{i:02d}", *("" if np.isnan(x) else repr(float(x)) for x in row)]) for i, row in enumerate(values)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_the_report_has_a_row_a_kind_and_no_path(tmp_path):
    counts = EXPRESSION["counts"].copy()
    counts[0, 0] = np.nan
    specs = [
        {"file": write(tmp_path / "rna.tsv", counts), "kind": "rnaseq"},
        {"file": write(tmp_path / "calls.tsv", OTHER["cnv_calls"]), "kind": "cnv", "unit": "cnv_calls"},
        {"file": write(tmp_path / "odd.tsv", OTHER["binary"] * 3), "kind": "mut", "unit": "auto"},
    ]
    matrix = build_matrix(specs, tmp_path / "o.h5", tmp_path / "tables.tsv")
    assert (tmp_path / "tables.tsv").read_text() == (
        "file\tkind\tunit\tsource\ttransform\tpatients\tfeatures\tmissing\n"
        "rna.tsv\trnaseq\tcounts\tdetected\tlog2(CPM + 1)\t40\t600\t1\n"
        "calls.tsv\tcnv\tcnv_calls\tstated\tnone\t40\t50\t0\n"
        "odd.tsv\tmut\tunknown\tunknown\tnone\t40\t50\t0\n"
    )
    np.testing.assert_allclose(matrix.values[1, :600], np.log2(counts[1] / counts[1].sum() * 1e6 + 1), rtol=1e-5)
    np.testing.assert_array_equal(matrix.values[:, 600:650], OTHER["cnv_calls"])


def test_a_stated_unit_holds_for_its_own_kind_of_a_mixed_table(tmp_path):
    mixed = np.hstack([EXPRESSION["tpm"], OTHER["binary"]])
    file = write(tmp_path / "m.tsv", mixed)
    text = file.read_text().split("\n", 1)
    names = [f"G{i}_{'rnaseq' if i < 600 else 'mut'}" for i in range(650)]
    file.write_text("\n".join(["\t".join(["patient_id", *names]), text[1]]))
    build_matrix([{"file": file, "unit": "tpm"}], tmp_path / "o.h5", tmp_path / "tables.tsv")
    assert read_table(tmp_path / "tables.tsv")[["kind", "unit", "source"]].to_numpy().tolist() == [
        ["rnaseq", "tpm", "stated"],
        ["mut", "binary", "detected"],
    ]


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("TPM", "c.tsv: unknown unit; found 'TPM', expected auto or counts or tpm or log2 or zscore or cnv_calls or cnv_log2 or binary."),
        (
            "log2",
            "c.tsv: `unit` is one of rnaseq features, which the table does not hold; found 'log2', expected auto, cnv_calls, cnv_log2. "
            "Correct `unit` or `kind`.",
        ),
    ],
)
def test_units_that_do_not_exist_or_belong_to_another_kind_are_refused(tmp_path, unit, message):
    with pytest.raises(InputError) as error:
        build_matrix([{"file": write(tmp_path / "c.tsv", OTHER["cnv_calls"]), "kind": "cnv", "unit": unit}], tmp_path / "o.h5")
    assert str(error.value).replace(f"{tmp_path}/", "").startswith(message)


@pytest.mark.realdata
class TestRealTables:
    @pytest.mark.slow
    def test_every_table_of_the_mcat_family_is_z_scores_calls_and_mutations(self, realdata, tmp_path):
        unit_of = {"rnaseq": "zscore", "cnv": "cnv_calls", "mut": "binary"}
        files = sorted(set((realdata / "tcga_mcat").glob("*/omics*.tsv.gz")) - set((realdata / "tcga_mcat").glob("*/*_mcat_sig.tsv.gz")))
        assert len(files) >= 7  # without the copies
        for file in files:
            build_matrix([{"file": file}], tmp_path / "o.h5", tmp_path / "t.tsv")
            rows = read_table(tmp_path / "t.tsv")
            assert rows["unit"].tolist() == [unit_of[kind] for kind in rows["kind"]], file
            assert set(rows["source"]) == {"detected"}
            assert set(rows["transform"]) == {"none"}

    def test_the_tables_of_survpath_are_logarithms_and_stating_it_changes_no_bit(self, realdata, tmp_path):
        for cohort in ("blca", "coadread"):
            spec = {"file": realdata / f"tcga_survpath/{cohort}/rna.tsv.gz", "kind": "rnaseq", "duplicates": "first"}
            build_matrix([spec], tmp_path / "auto.h5", tmp_path / "t.tsv")
            assert read_table(tmp_path / "t.tsv")["unit"].tolist() == ["log2"]
            build_matrix([{**spec, "unit": "log2"}], tmp_path / "stated.h5", tmp_path / "t.tsv")
            assert (tmp_path / "auto.h5").read_bytes() == (tmp_path / "stated.h5").read_bytes()

    def test_real_expression_taken_back_to_tpm_and_counts_is_recognised_and_comes_out_as_logarithms(self, realdata, tmp_path):
        matrix = build_matrix([{"file": realdata / "tcga_survpath/blca/rna.tsv.gz", "kind": "rnaseq"}], tmp_path / "o.h5")
        linear = np.maximum(2.0 ** matrix.values.astype(float) - 0.001, 0).round(4)
        tpm = linear / linear.sum(axis=1, keepdims=True) * 1e6  # as if these were all genes
        for unit, values in (("tpm", tpm), ("counts", (tpm * 20).round())):
            with gzip.open(tmp_path / "x.tsv.gz", "wt", compresslevel=1) as file:
                file.write("\t".join(["patient_id", *(f.removesuffix("_rnaseq") for f in matrix.features)]) + "\n")
                file.writelines("\t".join([p, *map(repr, row)]) + "\n" for p, row in zip(matrix.patients, values.tolist(), strict=True))
            again = build_matrix([{"file": tmp_path / "x.tsv.gz", "kind": "rnaseq"}], tmp_path / "x.h5", tmp_path / "t.tsv")
            assert read_table(tmp_path / "t.tsv")["unit"].tolist() == [unit]
            np.testing.assert_allclose(again.values, np.log2(tpm + 1), atol=0.1)
