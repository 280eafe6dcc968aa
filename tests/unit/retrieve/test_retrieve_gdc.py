"""The GDC: a server that evaluates its filters, and what may go wrong with slides."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from archive_server import Server, cut, silence, status

from pipeline import tables
from pipeline.errors import InputError
from pipeline.machine import MachineError
from pipeline.retrieve import gdc
from pipeline.retrieve.client import Client, UnreachableError


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def body(number: int) -> bytes:
    return bytes([number % 256]) * (1000 + number)


def record(number: int, **other: Any) -> dict[str, Any]:
    """A file as the API knows it, with the facts that filters ask for."""
    patient = f"TCGA-2F-{number:04d}"
    facts = {
        "file_id": uuid(number),
        "file_name": f"{patient}-01Z-00-DX1.{uuid(number).upper()}.svs",
        "md5sum": hashlib.md5(body(number)).hexdigest(),
        "file_size": len(body(number)),
        "state": "released",
        "cases": [{"submitter_id": patient, "project": {"project_id": "TCGA-BLCA"}}],
        "access": "open",
        "data_format": "SVS",
        "experimental_strategy": "Diagnostic Slide",
    }
    return facts | other


def passes(facts: dict[str, Any], filters: dict[str, Any]) -> bool:
    """Evaluate `op: and` and `op: in` as the API documents them."""
    if filters["op"] == "and":
        return all(passes(facts, part) for part in filters["content"])
    assert filters["op"] == "in"
    field, allowed = filters["content"]["field"], filters["content"]["value"]
    if field == "cases.project.project_id":
        return any(case["project"]["project_id"] in allowed for case in facts["cases"])
    return facts[field.removeprefix("files.")] in allowed


def serve(server: Server, *records: dict[str, Any]) -> None:
    """The endpoints ``files`` (filters, fields, sort, pages) and ``data``."""

    def files(_: dict[str, str], query: Any) -> Any:
        hits = sorted((r for r in records if passes(r, query["filters"])), key=lambda r: r[query["sort"].removesuffix(":asc")])
        page = hits[query["from"] : query["from"] + query["size"]]
        wanted = {field.partition(".")[0] for field in query["fields"].split(",")}
        shown = [{key: value for key, value in hit.items() if key in wanted} for hit in page]
        shown = [hit | {"cases": [{"submitter_id": case["submitter_id"]} for case in hit["cases"]]} for hit in shown]
        return {"data": {"hits": shown, "pagination": {"count": len(page), "total": len(hits), "from": query["from"]}}, "warnings": {}}

    server.services["/files"] = files
    for r in records:
        server.files[f"/data/{r['file_id']}"] = body(int(r["file_id"][-12:], 16))


@pytest.fixture
def manifest(server: Server, client: Client, tmp_path: Path) -> Path:
    """The manifest of six slides."""
    serve(server, *map(record, range(6)))
    gdc.write_manifest(server.url, ["blca"], tmp_path / "manifest.tsv", client)
    return tmp_path / "manifest.tsv"


def test_the_manifest_holds_the_open_diagnostic_slides_of_the_project(server: Server, client: Client, tmp_path: Path) -> None:
    other = [{"submitter_id": "TCGA-ZZ-0001", "project": {"project_id": "TCGA-LUAD"}}]
    wrong = [
        record(10, access="controlled"),
        record(11, experimental_strategy="Tissue Slide"),
        record(12, data_format="BAM"),
        record(13, cases=other),
    ]
    serve(server, record(2), record(1), *wrong)
    found = gdc.write_manifest(server.url, ["blca"], tmp_path / "m.tsv", client)
    assert list(found["patient_id"]) == ["TCGA-2F-0001", "TCGA-2F-0002"]
    written = tables.read_table(tmp_path / "m.tsv")
    assert list(written.columns) == ["id", "filename", "md5", "size", "state", "patient_id"]
    assert written.loc[0].tolist() == [
        uuid(1),
        found.loc[0, "filename"],
        hashlib.md5(body(1)).hexdigest(),
        "1001",
        "released",
        "TCGA-2F-0001",
    ]
    assert gdc.read_manifest(tmp_path / "m.tsv").equals(found)
    both = gdc.write_manifest(server.url, ["blca", "luad"], tmp_path / "m.tsv", client)
    assert len(both) == 3


def test_all_pages_are_asked_for(server: Server, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdc, "PAGE", 3)
    serve(server, *map(record, range(7)))
    server.faults["/files"] += [status(500), cut(20)]
    assert len(gdc.write_manifest(server.url, ["blca"], tmp_path / "m.tsv", client)) == 7
    assert [request.body["from"] for request in server.asked("/files")] == [0, 0, 0, 3, 6]


def test_pages_that_do_not_fit_together_are_an_error(server: Server, client: Client, tmp_path: Path) -> None:
    server.services["/files"] = lambda q, b: {"data": {"hits": [record(1)] * (b["from"] == 0), "pagination": {"total": 5}}}
    with pytest.raises(InputError, match=r"the pages of the answer do not fit together; found '1 files', expected 5"):
        gdc.write_manifest(server.url, ["blca"], tmp_path / "m.tsv", client)


def test_a_file_that_two_pages_show_is_an_error(server: Server, client: Client, tmp_path: Path) -> None:
    server.services["/files"] = lambda q, b: {"data": {"hits": [record(1)], "pagination": {"total": 2}}}
    with pytest.raises(InputError, match="id appears twice; found"):
        gdc.write_manifest(server.url, ["blca"], tmp_path / "m.tsv", client)


def test_a_project_without_slides_is_named(server: Server, client: Client, tmp_path: Path) -> None:
    serve(server, record(1))
    with pytest.raises(InputError, match="the GDC has no open diagnostic slide of blcaa; found '0 files'"):
        gdc.write_manifest(server.url, ["blcaa"], tmp_path / "m.tsv", client)


def test_an_answer_of_unknown_form_is_shown(server: Server, client: Client, tmp_path: Path) -> None:
    server.services["/files"] = lambda q, b: {"message": "gone"}
    with pytest.raises(InputError, match=r"unknown form of answer; found \"\{'message': 'gone'\}\", expected data.hits"):
        gdc.write_manifest(server.url, ["blca"], tmp_path / "m.tsv", client)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"file_name": "../../x.svs"}, "column 'filename': not a usable slide file id; found '../../x.svs'"),
        ({"file_name": "/etc/x.svs"}, "not a usable slide file id"),
        ({"file_name": "a\\b.svs"}, "not a usable slide file id"),
        ({"file_name": ".hidden.svs"}, "not a usable slide file id"),
        ({"file_name": "a.svs.source.yaml"}, "not a slide; found 'a.svs.source.yaml', expected a name that ends in .svs"),
        ({"cases": None}, "unknown form of answer"),
        ({"cases": ["A"]}, "unknown form of answer"),
        ({"file_id": "../secret"}, "not a file id of the GDC; found '../secret'"),
        ({"md5sum": None}, "column 'md5': not a checksum; expected 32 hex digits"),
        ({"file_size": -1}, "not a size; found '-1'"),
        ({"file_size": 0}, "not a size; found '0'"),
        ({"cases": []}, "belongs to 0 patients"),
        ({"cases": [{"submitter_id": "A"}, {"submitter_id": "B"}]}, "belongs to 2 patients"),
        ({"cases": [{"submitter_id": "../A"}]}, "not a usable patient id"),
    ],
)
def test_nothing_from_the_server_is_used_unchecked(server: Server, client: Client, tmp_path: Path, other: dict, message: str) -> None:
    server.services["/files"] = lambda q, b: {"data": {"hits": [record(1) | other], "pagination": {"total": 1}}}
    with pytest.raises(InputError) as error:
        gdc.write_manifest(server.url, ["blca"], tmp_path / "m.tsv", client)
    assert message in str(error.value)
    assert not (tmp_path / "m.tsv").exists()


def test_a_manifest_that_a_person_changed_is_checked_again(manifest: Path) -> None:
    lines = manifest.read_text().replace("TCGA-2F-0003-01Z", "../TCGA-2F-0003-01Z")
    manifest.write_text(lines)
    with pytest.raises(InputError, match=r"manifest.tsv, row 5, column 'filename': not a usable slide file id"):
        gdc.read_manifest(manifest)
    first = manifest.read_text().replace("../", "").splitlines()
    manifest.write_text("\n".join([*first, first[1], ""]))
    with pytest.raises(InputError, match=r"id appears twice; found .* Remove one of the rows"):
        gdc.read_manifest(manifest)


def test_slides_come_with_their_md5_and_are_not_read_again(server: Server, client: Client, manifest: Path, tmp_path: Path) -> None:
    got = gdc.download_slides(server.url, manifest, tmp_path / "slides", tmp_path / "status.tsv", client)
    assert list(got["status"]) == ["ok"] * 6
    assert [(tmp_path / "slides" / name).read_bytes() for name in got["filename"]] == [body(i) for i in range(6)]
    first = (tmp_path / "status.tsv").read_bytes()
    asked = len(server.requests)
    gdc.download_slides(server.url, manifest, tmp_path / "slides", tmp_path / "status.tsv", client)
    assert len(server.requests) == asked
    assert (tmp_path / "status.tsv").read_bytes() == first


def test_a_bad_slide_is_listed_and_the_others_go_on(server: Server, client: Client, manifest: Path, tmp_path: Path) -> None:
    server.files[f"/data/{uuid(2)}"] = body(2)[::-1] + b"!"
    server.files[f"/data/{uuid(3)}"] = b"x" * len(body(3))
    server.faults[f"/data/{uuid(4)}"] += [status(403)]
    server.faults[f"/data/{uuid(5)}"] += [cut(500), status(503)]
    got = gdc.download_slides(server.url, manifest, tmp_path / "slides", tmp_path / "status.tsv", client).set_index("file_id")
    assert list(got["status"]) == ["ok", "ok", "failed", "failed", "failed", "ok"]
    assert "the server's file has 1003 bytes, 1002 expected" in got.loc[uuid(2), "reason"]
    assert "wrong MD5" in got.loc[uuid(3), "reason"]
    assert "status 403" in got.loc[uuid(4), "reason"]
    assert "open-access" in got.loc[uuid(4), "remedy"]
    slides = sorted(p.name for p in (tmp_path / "slides").glob("*.svs"))
    assert slides == sorted(got.loc[got["status"] == "ok", "filename"])
    assert not list((tmp_path / "slides").glob("*.part*"))


def test_a_server_that_is_gone_stops_the_job_and_keeps_what_came(server: Server, client: Client, manifest: Path, tmp_path: Path) -> None:
    server.faults[f"/data/{uuid(2)}"] += [silence] * 9
    with pytest.raises(UnreachableError):
        gdc.download_slides(server.url, manifest, tmp_path / "slides", tmp_path / "status.tsv", client)
    assert len(list((tmp_path / "slides").glob("*.svs"))) == 2
    assert not (tmp_path / "status.tsv").exists()
    server.faults.clear()
    assert (gdc.download_slides(server.url, manifest, tmp_path / "slides", tmp_path / "status.tsv", client)["status"] == "ok").all()
    assert len(server.asked(f"/data/{uuid(0)}")) == 1


def test_a_server_that_fails_over_one_slide_for_a_night_fails_the_job_once_the_others_have_come(
    server: Server, client: Client, manifest: Path, tmp_path: Path
) -> None:
    """The slide is no row: the next night it comes, and those that came are not asked for again."""
    server.faults[f"/data/{uuid(2)}"] += [status(503)] * 9
    with pytest.raises(MachineError, match=r"1 of 6 slides \(.*\.svs\): the server did not give it at .*/slides/.*\.svs") as raised:
        gdc.download_slides(server.url, manifest, tmp_path / "slides", tmp_path / "status.tsv", client)
    assert "Check the connection" in str(raised.value)
    assert len(list((tmp_path / "slides").glob("*.svs"))) == 5
    assert not (tmp_path / "status.tsv").exists()
    server.faults.clear()
    assert (gdc.download_slides(server.url, manifest, tmp_path / "slides", tmp_path / "status.tsv", client)["status"] == "ok").all()
    assert len(server.asked(f"/data/{uuid(0)}")) == 1


def test_chunks_share_the_slides_out_and_are_joined(server: Server, client: Client, manifest: Path, tmp_path: Path) -> None:
    parts = []
    for chunk in range(3):
        parts.append(tmp_path / f"{chunk}.tsv")
        gdc.download_slides(server.url, manifest, tmp_path / "slides", parts[-1], client, chunk=chunk, chunks=3)
    joined = gdc.join_chunks(parts, tmp_path / "slides.tsv")
    assert list(joined["filename"]) == list(gdc.read_manifest(manifest)["filename"])
    assert all(len(server.asked(f"/data/{uuid(i)}")) == 1 for i in range(6))
    gdc.join_chunks(parts[::-1], tmp_path / "again.tsv")
    assert (tmp_path / "again.tsv").read_bytes() == (tmp_path / "slides.tsv").read_bytes()


def test_no_slide_at_all_is_an_error_with_the_first_reason(server: Server, client: Client, manifest: Path, tmp_path: Path) -> None:
    for i in range(6):
        server.faults[f"/data/{uuid(i)}"] += [status(404)]
    gdc.download_slides(server.url, manifest, tmp_path / "slides", tmp_path / "0.tsv", client)
    with pytest.raises(InputError, match=r"no slide could be had; the first: refused by .*status 404"):
        gdc.join_chunks([tmp_path / "0.tsv"], tmp_path / "slides.tsv")
