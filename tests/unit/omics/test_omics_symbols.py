from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.omics.symbols import Symbols, read_aliases, refuse_dates
from pipeline.tables import read_table

OURS = Path(__file__).parents[3] / "config" / "gene_aliases.tsv"
HGNC = (
    "hgnc_id\tsymbol\tname\talias_symbol\tprev_symbol\n"
    'HGNC:1\tMTARC1\tx\tFLJ22390|MOSC1\t"MARC1|MOSC1"\n'
    'HGNC:2\tMARCHF1\tx\t"MARCH-I|RNF171"\tMARCH1\n'
    "HGNC:3\tBHLHE40\tx\tDEC1|STRA13\tBHLHB2\n"
    "HGNC:4\tDELEC1\tx\t\tDEC1\n"
    "HGNC:5\tCENPX\tx\tSTRA13\t\n"
    "HGNC:6\tMIR9-1HG\tx\t\tC1orf61\n"
    "HGNC:7\tOTHER\tx\tCENPX\t\n"
)


@pytest.fixture
def hgnc(tmp_path):
    (tmp_path / "hgnc_complete_set.txt").write_text(HGNC)
    return tmp_path / "hgnc_complete_set.txt"


def test_previous_symbols_and_aliases_of_hgnc_lead_to_the_current_one(hgnc):
    symbols = read_aliases(hgnc)
    asked = ["MARC1", "MOSC1", "RNF171", "BHLHB2", "C1orf61", "C1ORF61", "CENPX", "TP53"]
    assert [symbols.current(s) for s in asked] == ["MTARC1", "MTARC1", "MARCHF1", "BHLHE40", "MIR9-1HG", "MIR9-1HG", "CENPX", "TP53"]


def test_a_previous_symbol_counts_before_an_alias_and_what_still_means_two_genes_is_left(hgnc):
    symbols = read_aliases(hgnc)
    assert symbols.current("DEC1") == "DELEC1"
    assert symbols.current("STRA13") == "STRA13"
    assert symbols.ambiguous == {"STRA13": ("BHLHE40", "CENPX")}


def test_the_cohorts_file_has_the_last_word_over_ours(tmp_path):
    (tmp_path / "ours.tsv").write_text("symbol\talias\nNEW\tOLD\nA\tX\nB\tX\nKEPT\tWAS\n")
    (tmp_path / "theirs.tsv").write_text("symbol\talias\nNEWEST\tNEW\nA\tX\nWAS\tBEFORE\n")
    symbols = read_aliases(tmp_path / "ours.tsv", tmp_path / "theirs.tsv")
    assert [symbols.current(s) for s in ("OLD", "X", "BEFORE", "WAS")] == ["NEWEST", "A", "WAS", "WAS"]
    assert symbols.ambiguous == {}


def test_a_circle_of_renamings_ends(tmp_path):
    (tmp_path / "a.tsv").write_text("symbol\talias\nB\tA\n")
    (tmp_path / "b.tsv").write_text("symbol\talias\nA\tB\n")
    assert read_aliases(tmp_path / "a.tsv", tmp_path / "b.tsv").current("B") == "A"
    assert Symbols({"A": "B", "B": "A"}).current("A") in ("A", "B")


def test_another_table_is_refused(tmp_path):
    (tmp_path / "x.tsv").write_text("gene\tname\nA\tB\n")
    with pytest.raises(InputError) as error:
        read_aliases(tmp_path / "x.tsv")
    assert str(error.value).replace(f"{tmp_path}/", "") == (
        "x.tsv: is no table of gene symbols; found 'gene, name', expected columns `symbol` and `alias`, "
        "or HGNC's `symbol`, `prev_symbol` and `alias_symbol`."
    )


def test_our_table_is_sorted_says_each_alias_once_and_renames_nothing_twice():
    table = read_table(OURS, ["symbol", "alias"])
    assert table.sort_values(["symbol", "alias"]).equals(table)
    assert not table["alias"].duplicated().any()
    assert not set(table["alias"]) & set(table["symbol"])
    symbols = read_aliases(OURS)
    assert symbols.ambiguous == {}
    renamed = {
        "SEPT9": "SEPTIN9", "MARCH6": "MARCHF6", "DEC1": "DELEC1", "MARC1": "MTARC1", "MARC2": "MTARC2", "MUT": "MMUT", "T": "TBXT",
        "HIST1H4I": "H4C9", "WHSC1": "NSD2", "PVRL4": "NECTIN4", "PARK2": "PRKN", "MLL": "KMT2A",
    }  # fmt: skip
    assert {old: symbols.current(old) for old in renamed} == renamed


@pytest.mark.parametrize(
    "date", ["1-Mar", "2-Sep", "Mar-01", "SEP-02", "01. Mrz", "2020-03-01", "2020-03-01 00:00:00", "3/1/2020", "10-Sep-20", "1-Dec"]
)
def test_dates_are_refused_as_genes(date):
    with pytest.raises(InputError, match="1 gene symbols were made dates by a spreadsheet"):
        refuse_dates(["TP53", date], "t.tsv")


def test_all_dates_are_listed():
    with pytest.raises(InputError) as error:
        refuse_dates(["1-Mar", "TP53", "2-Sep", "1-Dec"], "t.tsv")
    assert str(error.value) == (
        "t.tsv: 3 gene symbols were made dates by a spreadsheet; found '1-Mar, 2-Sep, 1-Dec', expected gene symbols. "
        "Take the table from its source again, without a spreadsheet; a date does not tell the gene (1-Mar: MARCH1 or MARC1)."
    )


def test_every_symbol_of_ours_passes_and_genes_that_look_like_months_do():
    table = read_table(OURS)
    genes = [
        *table["symbol"],
        *table["alias"],
        "MARS",
        "DECR1",
        "AUGN",
        "NOVA1",
        "JUN",
        "MAY",
        "NKX2-1",
        "H3-3A",
        "HLA-A",
        "7SK",
        "5-HT3C2",
    ]
    refuse_dates(genes, "t.tsv")


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(0, 20), st.integers(1, 5)), st.integers(0, 20))
def test_a_chain_of_renamings_is_followed_to_its_end(steps, start):
    symbols = Symbols({f"G{i}": f"G{i + step}" for i, step in steps.items()})
    end = symbols.current(f"g{start}")
    assert end not in symbols.renamed
    assert symbols.current(end) == end
