"""Gene sets, aliases, settings and sources."""

from pathlib import Path

import pytest
import yaml
from archive_server import Server, cut

from pipeline.errors import InputError
from pipeline.retrieve.client import Client
from pipeline.retrieve.hgnc import fetch_aliases
from pipeline.retrieve.msigdb import fetch_gene_sets, gene_sets_url
from pipeline.retrieve.settings import RetrieveSettings
from pipeline.retrieve.source import list_sources, write_origin

GMT = "HALLMARK_HYPOXIA\thttps://example.org\tPGK1\tADM\nHALLMARK_APOPTOSIS\thttps://example.org\tCASP3\n"
HGNC = 'hgnc_id\tsymbol\tname\talias_symbol\tprev_symbol\nHGNC:7526\tMMUT\tmethylmalonyl-CoA mutase\t\t"MUT"\n'


def test_gene_sets_come_by_collection_and_release(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/2023.2.Hs/h.all.v2023.2.Hs.symbols.gmt"] = GMT.encode()
    server.faults["/2023.2.Hs/h.all.v2023.2.Hs.symbols.gmt"] += [cut(40)]
    assert fetch_gene_sets(server.url, "2023.2.Hs", "h.all", tmp_path / "h.gmt", client) == 2
    assert (tmp_path / "h.gmt").read_text() == GMT


def test_gene_sets_that_are_none_are_refused(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/7.1/c2.all.v7.1.symbols.gmt"] = b"not a gene set\n"
    with pytest.raises(InputError, match=r"row 1: line is not a gene set"):
        fetch_gene_sets(server.url, "7.1", "c2.all", tmp_path / "h.gmt", client)


@pytest.mark.parametrize(("release", "collection"), [("../x", "h.all"), ("2023.2.Hs", "../h"), ("2023.2.Hs", "h/all"), ("", "h.all")])
def test_release_and_collection_are_checked_before_they_become_an_address(release: str, collection: str) -> None:
    with pytest.raises(InputError, match="of MSigDB"):
        gene_sets_url("https://example.org", release, collection)


def test_aliases_come_as_they_are_published(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/hgnc_complete_set.txt"] = HGNC.encode()
    fetch_aliases(f"{server.url}/hgnc_complete_set.txt", tmp_path / "hgnc.txt", client)
    assert (tmp_path / "hgnc.txt").read_text() == HGNC
    server.files["/other.txt"] = b"id\tsymbol\n1\tMMUT\n"
    with pytest.raises(InputError, match=r"is not HGNC's complete set; found 'id, symbol', expected hgnc_id, alias_symbol, prev_symbol"):
        fetch_aliases(f"{server.url}/other.txt", tmp_path / "other.txt", client)


def test_cohorts_of_the_literature_join_projects() -> None:
    settings = RetrieveSettings.of({"projects": {"nsclc": ["LUAD", "lusc"]}, "study": "{project}_tcga"})
    assert settings.projects_of("blca") == ["blca"]
    assert settings.projects_of("gbmlgg") == ["gbm", "lgg"]
    assert settings.projects_of("nsclc") == ["luad", "lusc"]
    assert settings.studies_of("coadread") == ["coad_tcga", "read_tcga"]


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown key 'retrieve.msigdb_relase'.*Did you mean 'msigdb_release'\?"):
        RetrieveSettings.of({"msigdb_relase": "7.1"})


def test_patience_comes_from_the_configuration() -> None:
    client = Client.of({"retrieve": {"tries": 2, "wait": 0.5}, "seed": 1})
    assert (client.tries, client.wait, client.timeout) == (2, 0.5, 60.0)


def test_sources_are_listed_and_never_dated(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a.txt"] = b"a\n"
    client.download(f"{server.url}/a.txt", tmp_path / "a.txt")
    (tmp_path / "b.tsv").write_text("x\n1\n")
    write_origin(tmp_path / "b.tsv", files=[tmp_path / "a.txt"], projects=["blca"])
    list_sources([tmp_path / "b.tsv", tmp_path / "a.txt"], tmp_path / "files.tsv")
    lines = (tmp_path / "files.tsv").read_text().splitlines()
    assert lines[0] == "file\tbytes\tsha256\turl"
    assert lines[1].startswith("a.txt\t2\t87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7\thttp://127.0.0.1")
    assert lines[2].startswith("b.tsv\t4\t")
    assert set(yaml.safe_load((tmp_path / "b.tsv.source.yaml").read_text())) == {"size", "sha256", "made_from", "projects"}
