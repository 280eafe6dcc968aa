"""The rules as a person calls them, against a server on this machine that has one small project."""

import gzip
from pathlib import Path

import pytest
import yaml
from archive_server import Server, status
from test_retrieve_gdc import record, serve, uuid
from test_retrieve_references import GMT, HGNC
from test_retrieve_xena import MATRIX, PROBES, SURVIVAL
from tests.workflow.conftest import run

from pipeline import tables


@pytest.mark.slow
def test_one_command_brings_what_a_cohort_needs(server: Server, tmp_path: Path) -> None:
    serve(server, *map(record, range(1, 6)))
    server.files |= {
        "/m.gz": gzip.compress(MATRIX.encode()),
        "/p": PROBES.encode(),
        "/s": SURVIVAL.encode(),
        "/msigdb/2023.2.Hs/h.all.v2023.2.Hs.symbols.gmt": GMT.encode(),
        "/msigdb/2023.2.Hs/c2.cp.reactome.v2023.2.Hs.symbols.gmt": GMT.encode(),
        "/hgnc.txt": HGNC.encode(),
    }
    server.faults["/p"] += [status(503)]
    server.faults[f"/data/{uuid(3)}"] += [status(404)]
    settings = {"gdc": server.url, "msigdb": f"{server.url}/msigdb", "hgnc": f"{server.url}/hgnc.txt", "wait": 0.01, "chunks": 2}
    settings |= {"expression": f"{server.url}/m.gz", "probemap": f"{server.url}/p", "survival": f"{server.url}/s"}
    (tmp_path / "near.yaml").write_text(yaml.safe_dump({"retrieve": settings, "data_dir": "data"}))
    near = ("--configfile", str(tmp_path / "near.yaml"))
    run(tmp_path, *near, "--", "data/tcga/blca/files.tsv", "data/tcga/blca/slides.tsv")

    blca = tmp_path / "data/tcga/blca"
    assert [line.split("\t")[0] for line in (blca / "files.tsv").read_text().splitlines()[1:]] == [
        "clinical.tsv",
        "expression.tsv.gz",
        "c2.cp.reactome.v2023.2.Hs.symbols.gmt",
        "h.all.v2023.2.Hs.symbols.gmt",
        "hgnc_complete_set.txt",
    ]
    assert list(tables.read_table(blca / "expression.tsv.gz")["patient_id"]) == ["TCGA-2F-0001", "TCGA-2F-0003"]
    slides = tables.read_table(blca / "slides.tsv")
    assert list(slides["status"]) == ["ok", "ok", "failed", "ok", "ok"]
    assert len(list((blca / "slides").glob("*.svs"))) == 4

    asked = len(server.requests)
    assert "Nothing to be done" in run(tmp_path, *near, "--", "data/tcga/blca/files.tsv", "data/tcga/blca/slides.tsv")
    run(tmp_path, *near, "--forcerun", "retrieve_slides_chunk", "--", "data/tcga/blca/slides.tsv")
    assert [request.path for request in server.requests[asked:]] == [f"/data/{uuid(3)}"], "only the missing slide is fetched"
    assert (tables.read_table(blca / "slides.tsv")["status"] == "ok").all()
