import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.omics.groups import build_groups, read_gene_sets, read_groups
from pipeline.omics.matrix import build_matrix
from pipeline.omics.scaling import Scaler

ALIASES = Path(__file__).parents[3] / "config" / "gene_aliases.tsv"
REAL = os.environ.get("SLIDE2SURV_REALDATA")
needs_real = [
    pytest.mark.realdata,
    pytest.mark.skipif(not REAL or not Path(REAL).is_dir(), reason="SLIDE2SURV_REALDATA does not name the folder of real data"),
]

SETS = {"Second": ["B", "A"], "First": ["C", "B"]}
FORMS = {
    "s.gmt": "Second\tna\tB\tA\tB\t\nFirst\thttp://x\tC\tB\n",
    "long.tsv": "family\tgene\nSecond\tB\nSecond\tA\nFirst\tC\nSecond\tB\nFirst\tB\n",
    "set.tsv": "n\tGene\tSet\n1\tB\tSecond\n2\tA\tSecond\n3\tC\tFirst\n4\tB\tFirst\n",
    "wide.csv": "Second,First\nB,C\nA,B\nB,\n",
    "wide.tsv": "Second\tFirst\nB\tC\nA\tB\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_sets_in_file_order_with_each_gene_once(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name])
    sets = read_gene_sets(tmp_path / name)
    assert sets == SETS
    assert list(sets) == ["Second", "First"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.gmt", None, "none.gmt: no such gene-set file; expected a GMT, TSV or CSV file. Check the path and `data_dir`."),
        (
            "s.xlsx",
            "x",
            "s.xlsx: unknown format of gene sets; found '.xlsx', expected .gmt or .tsv or .csv. Save the gene sets as GMT or as a table.",
        ),
        ("s.gmt", "A\tna\tX\nA\tna\tY\n", "s.gmt, row 2: gene set appears twice; found 'A', expected each name once."),
        (
            "s.gmt",
            "A na X\n",
            "s.gmt, row 1: line is not a gene set; found 'A na X', expected name, description and genes, separated by tabs.",
        ),
        ("s.gmt", "", "s.gmt: holds no gene; expected at least one set with one gene."),
        (
            "s.tsv",
            "gene\tscore\nA\t1\n",
            "s.tsv: has genes but no group; found 'gene, score', expected a column group or family or pathway or gene_set or set.",
        ),
    ],
)
def test_unusable_gene_sets_are_named(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        read_gene_sets(tmp_path / name)
    assert str(error.value).replace(f"{tmp_path}/", "") == message


@pytest.fixture
def matrix(tmp_path):
    (tmp_path / "m.tsv").write_text("patient_id\tB_rnaseq\tA_rnaseq\tA_cnv\tD_mut\nP1\t1\t2\t0\t1\n")
    build_matrix([{"file": tmp_path / "m.tsv"}], tmp_path / "omics.h5")
    return tmp_path / "omics.h5"


def built(tmp_path, matrix, gmt, **options):
    (tmp_path / "s.gmt").write_text(gmt)
    name = options.pop("name", "pathways")
    return build_groups(matrix, {name: {"file": tmp_path / "s.gmt", **options}}, tmp_path / "groups.tsv", tmp_path / "coverage.tsv")


def test_groups_and_features_are_sorted_and_a_gene_may_feed_several(tmp_path, matrix):
    built(tmp_path, matrix, "Z\tna\tB\tA\tX\nY\tna\tA\tD\n", name="families")
    assert read_groups(tmp_path / "groups.tsv") == {
        "families": {"Z": ["A_cnv", "A_rnaseq", "B_rnaseq"], "Y": ["A_cnv", "A_rnaseq", "D_mut"]}
    }
    assert list(read_groups(tmp_path / "groups.tsv")["families"]) == ["Y", "Z"]
    assert (tmp_path / "coverage.tsv").read_text() == (
        "grouping\tgroup\tgenes\tfound\tfound_by_alias\tcoverage\nfamilies\tY\t2\t2\t0\t1\nfamilies\tZ\t3\t2\t0\t0.6666666667\n"
    )


def test_pathways_take_expression_alone_unless_told_otherwise(tmp_path, matrix):
    groups, _ = built(tmp_path, matrix, "Z\tna\tB\tA\n")
    assert groups["feature"].tolist() == ["A_rnaseq", "B_rnaseq"]
    groups, _ = built(tmp_path, matrix, "Z\tna\tB\tA\n", kinds=["cnv", "rnaseq"])
    assert groups["feature"].tolist() == ["A_cnv", "A_rnaseq", "B_rnaseq"]


def test_groups_without_enough_measured_genes_are_dropped_and_reported(tmp_path, matrix, caplog):
    gmt = "Whole\tna\tA\tB\nHalf\tna\tA\tX\nNone\tna\tX\tY\n"
    groups, coverage = built(tmp_path, matrix, gmt)
    assert groups["group"].unique().tolist() == ["Half", "Whole"]
    assert "1 of 3 groups have too few measured genes: None" in caplog.text
    assert coverage[["genes", "found"]].to_numpy().tolist() == [[2, 1], [2, 0], [2, 2]]
    groups, coverage = built(tmp_path, matrix, gmt, min_coverage=0.9)
    assert groups["group"].unique().tolist() == ["Whole"]
    assert len(coverage) == 3


def test_it_is_an_error_when_nothing_is_left(tmp_path, matrix):
    with pytest.raises(InputError) as error:
        built(tmp_path, matrix, "S\tna\tX\tY\n")
    assert str(error.value).replace(f"{tmp_path}/", "") == (
        "s.gmt: no group of 'pathways' is measured; found 'B_rnaseq, A_rnaseq, A_cnv', expected features <gene>_rnaseq of its genes. "
        "Check that both use the same gene symbols and that `kinds` names what the tables hold."
    )


@pytest.mark.parametrize("options", [{"kinds": ["rna"]}, {"min_coverage": 90}])
def test_settings_outside_their_range_are_refused(tmp_path, matrix, options):
    with pytest.raises(InputError, match=r"s.gmt: (unknown kind of omics feature|`min_coverage` is not a share)"):
        built(tmp_path, matrix, "S\tna\tA\n", **options)


OLD_AND_NEW = "symbol\talias\nMMUT\tMUT\nNSD2\tWHSC1\nMIR9-1HG\tC1orf61\nX1\tXX\nX2\tXX\n"


@pytest.fixture
def aliased(tmp_path):
    """A matrix of old symbols for RNA and new ones for copy number, and what to call build_groups with."""
    header = ["patient_id", "MUT_rnaseq", "MMUT_cnv", "WHSC1_rnaseq", "NSD2_rnaseq", "C1ORF61_rnaseq", "X1_rnaseq"]
    (tmp_path / "m.tsv").write_text("\t".join(header) + "\nP1\t1.5\t2\t3\t4\t5\t6\n")
    build_matrix([{"file": tmp_path / "m.tsv"}], tmp_path / "omics.h5")
    (tmp_path / "aliases.tsv").write_text(OLD_AND_NEW)

    def build(gmt, **options):
        (tmp_path / "s.gmt").write_text(gmt)
        spec = {"sets": {"file": tmp_path / "s.gmt", "kinds": ["rnaseq", "cnv"], **options}}
        return build_groups(tmp_path / "omics.h5", spec, tmp_path / "g.tsv", tmp_path / "c.tsv", [tmp_path / "aliases.tsv"])

    return build


@pytest.mark.parametrize("gene", ["MUT", "MMUT"])
def test_a_gene_is_found_under_its_old_and_its_new_symbol_each_kind_by_itself(aliased, gene):
    groups, coverage = aliased(f"S\tna\t{gene}\n")
    assert groups["feature"].tolist() == ["MMUT_cnv", "MUT_rnaseq"]
    assert coverage[["genes", "found", "found_by_alias", "coverage"]].to_numpy().tolist() == [[1, 1, 0, 1]]  # one kind has this very symbol


def test_what_is_found_under_another_symbol_alone_is_counted_and_lifts_the_coverage(aliased):
    groups, coverage = aliased("S\tna\tMIR9-1HG\tX1\n", min_coverage=0.9)
    assert groups["feature"].tolist() == ["C1ORF61_rnaseq", "X1_rnaseq"]
    assert coverage[["genes", "found", "found_by_alias", "coverage"]].to_numpy().tolist() == [[2, 2, 1, 1]]


@pytest.mark.parametrize("gene", ["WHSC1", "NSD2"])
def test_a_symbol_that_is_itself_measured_stands_for_itself(aliased, gene):
    groups, coverage = aliased(f"S\tna\t{gene}\n")
    assert groups["feature"].tolist() == [f"{gene}_rnaseq"]
    assert coverage["found_by_alias"].tolist() == [0]


def test_two_symbols_of_one_gene_in_a_set_give_its_feature_once(aliased):
    groups, coverage = aliased("S\tna\tMUT\tMMUT\n", kinds=["rnaseq"])
    assert groups["feature"].tolist() == ["MUT_rnaseq"]
    assert coverage[["found", "found_by_alias"]].to_numpy().tolist() == [[2, 1]]


def test_an_ambiguous_symbol_is_left_and_reported(aliased, caplog):
    groups, coverage = aliased("S\tna\tXX\tX1\n")
    assert groups["feature"].tolist() == ["X1_rnaseq"]
    assert coverage["found"].tolist() == [1]
    assert "s.gmt: 1 outdated symbols may mean several genes and are left: XX (X1 or X2)" in caplog.text


def test_without_an_alias_table_symbols_are_compared_as_they_are(tmp_path, aliased):
    (tmp_path / "s.gmt").write_text("S\tna\tMUT\tNSD2\n")
    groups, _ = build_groups(tmp_path / "omics.h5", {"sets": {"file": tmp_path / "s.gmt"}}, tmp_path / "g.tsv", tmp_path / "c.tsv")
    assert groups["feature"].tolist() == ["MUT_rnaseq", "NSD2_rnaseq"]


def test_a_gene_set_file_that_went_through_a_spreadsheet_is_refused(tmp_path):
    (tmp_path / "s.csv").write_text("set,gene\nA,TP53\nA,2-Sep\nB,1-Mar\nC,2-Sep\n")
    with pytest.raises(InputError, match=r"s.csv: 2 gene symbols were made dates by a spreadsheet; found '2-Sep, 1-Mar'"):
        read_gene_sets(tmp_path / "s.csv")


FAMILIES = (
    "Tumor Suppressor Genes",
    "Oncogenes",
    "Protein Kinases",
    "Cell Differentiation Markers",
    "Transcription Factors",
    "Cytokines and Growth Factors",
)


class TestRealSets:
    pytestmark = needs_real

    def test_six_families_on_the_reactome_table_shrink_as_the_specification_says(self, tmp_path):
        build_matrix([{"file": f"{REAL}/tcga_survpath/blca/rna.tsv.gz", "kind": "rnaseq"}], tmp_path / "o.h5")
        spec = {"families": {"file": f"{REAL}/tcga_mcat/signatures.tsv"}}
        groups, _ = build_groups(tmp_path / "o.h5", spec, tmp_path / "g.tsv", tmp_path / "c.tsv")
        assert [int((groups["group"] == name).sum()) for name in FAMILIES] == [24, 39, 82, 69, 50, 57]
        groups, coverage = build_groups(tmp_path / "o.h5", spec, tmp_path / "g.tsv", tmp_path / "c.tsv", [ALIASES])
        # CARS1; NECTIN1 to 3, then PVRL1 to 3
        assert [int((groups["group"] == name).sum()) for name in FAMILIES] == [24, 40, 82, 72, 50, 57]
        assert coverage.set_index("group").loc[list(FAMILIES), "found_by_alias"].tolist() == [0, 1, 0, 3, 0, 0]

    def test_our_aliases_leave_the_published_families_of_blca_and_luad_as_they_are(self, tmp_path):
        for cohort in ("blca", "luad"):
            build_matrix([{"file": f"{REAL}/tcga_mcat/{cohort}/omics.tsv.gz"}], tmp_path / "o.h5")
            spec = {"families": {"file": f"{REAL}/tcga_mcat/signatures.tsv"}}
            build_groups(tmp_path / "o.h5", spec, tmp_path / "plain.tsv", tmp_path / "c.tsv")
            build_groups(tmp_path / "o.h5", spec, tmp_path / "aliased.tsv", tmp_path / "c.tsv", [ALIASES])
            assert (tmp_path / "plain.tsv").read_bytes() == (tmp_path / "aliased.tsv").read_bytes()

    @pytest.mark.parametrize(("name", "kept"), [("xena", 281), ("combine", 281), ("hallmarks", 0)])
    def test_the_coverage_rule_of_the_authors_keeps_the_reactome_sets_alone(self, tmp_path, name, kept):
        build_matrix([{"file": f"{REAL}/tcga_survpath/blca/rna.tsv.gz", "kind": "rnaseq"}], tmp_path / "o.h5")
        spec = {"pathways": {"file": f"{REAL}/tcga_survpath/pathways_{name}.gmt", "min_coverage": 0.9, "optional": True}}
        groups, coverage = build_groups(tmp_path / "o.h5", spec, tmp_path / "g.tsv", tmp_path / "c.tsv", [ALIASES])
        assert groups["group"].nunique() == kept == (coverage["coverage"] >= 0.9).sum()

    @pytest.mark.parametrize("cohort", ["blca", "coadread"])
    def test_the_floor_of_log2_tpm_goes_to_minus_one(self, tmp_path, cohort):
        spec = {"file": f"{REAL}/tcga_survpath/{cohort}/rna.tsv.gz", "kind": "rnaseq", "duplicates": "first"}
        values = build_matrix([spec], tmp_path / "o.h5").values
        scaled = Scaler.fit(values[:200], "minmax_global").transform(values)
        np.testing.assert_allclose(scaled[values == values.min()], -1, atol=1e-6)
        assert scaled[:200].max() == pytest.approx(1, abs=1e-6)

    def test_the_six_families_of_blca_have_the_published_sizes(self, tmp_path):
        # The public loader takes columns by position and loses the last one, ZXDC_rnaseq, a transcription factor: 1495 there.
        build_matrix([{"file": f"{REAL}/tcga_mcat/blca/omics.tsv.gz"}], tmp_path / "o.h5")
        spec = {"families": {"file": f"{REAL}/tcga_mcat/signatures.tsv"}}
        groups, coverage = build_groups(tmp_path / "o.h5", spec, tmp_path / "g.tsv", tmp_path / "c.tsv")
        assert [int((groups["group"] == name).sum()) for name in FAMILIES] == [94, 334, 521, 468, 1496, 479]
        assert coverage.set_index("group").loc[list(FAMILIES), "genes"].tolist() == [82, 328, 513, 443, 1536, 452]

    @pytest.mark.parametrize(
        ("name", "pathways", "listed", "kept"), [("xena", 281, 2635, 2635), ("combine", 331, 9745, 4175), ("hallmarks", 50, 7110, 1540)]
    )
    def test_pathways_have_the_published_memberships(self, tmp_path, name, pathways, listed, kept):
        build_matrix([{"file": f"{REAL}/tcga_survpath/blca/rna.tsv.gz", "kind": "rnaseq"}], tmp_path / "o.h5")
        spec = {"pathways": {"file": f"{REAL}/tcga_survpath/pathways_{name}.gmt"}}
        groups, coverage = build_groups(tmp_path / "o.h5", spec, tmp_path / "g.tsv", tmp_path / "c.tsv")
        assert groups["group"].nunique() == pathways
        assert (coverage["genes"].sum(), len(groups)) == (listed, kept)
