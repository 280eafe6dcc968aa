import os
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.omics.groups import build_groups, read_gene_sets, read_groups
from pipeline.omics.matrix import build_matrix

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


def test_features_are_sorted_groups_keep_file_order_and_a_gene_may_feed_several(tmp_path, matrix):
    built(tmp_path, matrix, "Z\tna\tB\tA\tX\nY\tna\tA\tD\n", name="families")
    assert read_groups(tmp_path / "groups.tsv") == {
        "families": {"Z": ["A_cnv", "A_rnaseq", "B_rnaseq"], "Y": ["A_cnv", "A_rnaseq", "D_mut"]}
    }
    assert list(read_groups(tmp_path / "groups.tsv")["families"]) == ["Z", "Y"]
    assert (tmp_path / "coverage.tsv").read_text() == (
        "grouping\tgroup\tgenes\tfound\tcoverage\nfamilies\tZ\t3\t2\t0.6666666667\nfamilies\tY\t2\t2\t1\n"
    )


def test_pathways_take_expression_alone_unless_told_otherwise(tmp_path, matrix):
    groups, _ = built(tmp_path, matrix, "Z\tna\tB\tA\n")
    assert groups["feature"].tolist() == ["A_rnaseq", "B_rnaseq"]
    groups, _ = built(tmp_path, matrix, "Z\tna\tB\tA\n", kinds=["cnv", "rnaseq"])
    assert groups["feature"].tolist() == ["A_cnv", "A_rnaseq", "B_rnaseq"]


def test_groups_without_enough_measured_genes_are_dropped_and_reported(tmp_path, matrix, caplog):
    gmt = "Whole\tna\tA\tB\nHalf\tna\tA\tX\nNone\tna\tX\tY\n"
    groups, coverage = built(tmp_path, matrix, gmt)
    assert groups["group"].unique().tolist() == ["Whole", "Half"]
    assert "1 of 3 groups have too few measured genes: None" in caplog.text
    assert coverage[["genes", "found"]].to_numpy().tolist() == [[2, 2], [2, 1], [2, 0]]
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


class TestRealSets:
    pytestmark = needs_real

    def test_the_six_families_of_blca_have_the_published_sizes(self, tmp_path):
        # The public loader takes columns by position and loses the last one, ZXDC_rnaseq, a transcription factor: 1495 there.
        build_matrix([{"file": f"{REAL}/tcga_mcat/blca/omics.tsv.gz"}], tmp_path / "o.h5")
        spec = {"families": {"file": f"{REAL}/tcga_mcat/signatures.tsv"}}
        groups, coverage = build_groups(tmp_path / "o.h5", spec, tmp_path / "g.tsv", tmp_path / "c.tsv")
        assert groups.groupby("group", sort=False).size().tolist() == [94, 334, 521, 468, 1496, 479]
        assert coverage["genes"].tolist() == [82, 328, 513, 443, 1536, 452]

    @pytest.mark.parametrize(
        ("name", "pathways", "listed", "kept"), [("xena", 281, 2635, 2635), ("combine", 331, 9745, 4175), ("hallmarks", 50, 7110, 1540)]
    )
    def test_pathways_have_the_published_memberships(self, tmp_path, name, pathways, listed, kept):
        build_matrix([{"file": f"{REAL}/tcga_survpath/blca/rna.tsv.gz", "kind": "rnaseq"}], tmp_path / "o.h5")
        spec = {"pathways": {"file": f"{REAL}/tcga_survpath/pathways_{name}.gmt"}}
        groups, coverage = build_groups(tmp_path / "o.h5", spec, tmp_path / "g.tsv", tmp_path / "c.tsv")
        assert groups["group"].nunique() == pathways
        assert (coverage["genes"].sum(), len(groups)) == (listed, kept)
