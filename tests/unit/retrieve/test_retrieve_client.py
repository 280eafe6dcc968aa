"""Requests and downloads against a server that fails on purpose."""

import gzip
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import yaml
from archive_server import Server, cut, cut_rest, dripping, endless, other, silence, status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.retrieve import arriving, part
from pipeline.retrieve import client as client_module
from pipeline.retrieve.client import Client, UnreachableError
from pipeline.retrieve.source import read_source

BODY = bytes(range(256)) * 2000
MD5 = hashlib.md5(BODY).hexdigest()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_with_its_source_and_nothing_else(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a.svs"] = BODY
    source = client.download(f"{server.url}/a.svs", tmp_path / "a.svs", size=len(BODY), digest=MD5)
    assert (tmp_path / "a.svs").read_bytes() == BODY
    assert names(tmp_path) == ["a.svs", "a.svs.source.yaml"]
    said = yaml.safe_load((tmp_path / "a.svs.source.yaml").read_text())
    assert said == {"url": f"{server.url}/a.svs", "size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest(), "md5": MD5}
    assert read_source(tmp_path / "a.svs") == source


def test_what_is_there_is_not_asked_for_again(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    for _ in range(2):
        client.download(f"{server.url}/a", tmp_path / "a", digest=MD5)
    assert len(server.requests) == 1
    client.download(f"{server.url}/a", tmp_path / "a")  # no MD5 was stated: not the same promise
    assert len(server.requests) == 2


def test_a_file_that_came_by_other_means_is_proven_once(server: Server, client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BODY)
    client.download(f"{server.url}/a", tmp_path / "a", size=len(BODY), digest=MD5)
    assert not server.requests
    assert read_source(tmp_path / "a").md5 == MD5


def test_a_file_of_another_size_is_fetched_again(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    client.download(f"{server.url}/a", tmp_path / "a", size=len(BODY), digest=MD5)
    with open(tmp_path / "a", "ab") as handle:
        handle.write(b"x")
    client.download(f"{server.url}/a", tmp_path / "a", size=len(BODY), digest=MD5)
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_cut_connection_goes_on_at_the_next_byte(server: Server, client: Client, tmp_path: Path, slept: list[float]) -> None:
    server.files["/a"] = BODY
    server.faults["/a"] += [cut(100_000), cut_rest(50_000)]
    client.download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert [request.headers.get("Range") for request in server.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert {request.headers.get("If-Range") for request in server.requests[1:]} == {server.tag(BODY)}
    assert len(slept) == 2
    assert slept[0] <= 1, "a gained byte starts the patience anew"
    assert slept[1] <= 1


def test_a_line_that_breaks_more_often_than_there_are_tries_still_ends(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    server.faults["/a"] += [cut(50_000), *[cut_rest(50_000)] * 8]
    client.download(f"{server.url}/a", tmp_path / "a", digest=MD5)
    assert len(server.requests) == 10 > client.tries


def test_a_later_process_goes_on_with_the_part(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    server.faults["/a"] += [cut(100_000), *[silence] * 4]
    with pytest.raises(UnreachableError, match=r"no success at .*/a after 4 tries"):
        client.download(f"{server.url}/a", tmp_path / "a")
    assert names(tmp_path) == ["a.part", "a.part.yaml"]
    Client().download(f"{server.url}/a", tmp_path / "a")
    assert server.requests[-1].headers["Range"] == "bytes=100000-"
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_file_that_changed_meanwhile_is_begun_anew(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    server.faults["/a"] += [cut(100_000), *[silence] * 4]
    with pytest.raises(InputError):
        client.download(f"{server.url}/a", tmp_path / "a")
    server.files["/a"] = BODY[::-1]
    client.download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY[::-1]


def test_a_server_without_range_or_tag_gives_the_whole_file_again(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    server.faults["/a"] += [lambda h, c: h.send(200, c, sent=100_000), other(BODY)]
    client.download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert "Range" not in server.requests[1].headers, "two versions could be joined without a tag or an MD5"


def test_a_server_that_ignores_range_gives_the_whole_file_again(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    server.faults["/a"] += [cut(100_000), other(BODY)]
    client.download(f"{server.url}/a", tmp_path / "a", digest=MD5)
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.requests[1].headers["Range"] == "bytes=100000-"


def test_a_server_that_never_gets_further_is_given_up(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    server.faults["/a"] += [cut(100_000)] * 9
    with pytest.raises(InputError, match=r"a: no success at .* after 4 tries"):
        client.download(f"{server.url}/a", tmp_path / "a", digest=MD5)
    assert len(server.requests) == 4, "the same bytes again are no gain"


def test_a_range_from_a_wrong_byte_is_not_joined(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    wrong = {"Content-Range": f"bytes 5-{len(BODY) - 1}/{len(BODY)}"}
    server.faults["/a"] += [cut(100_000), lambda h, c: h.send(206, c[5:], **wrong)]
    client.download(f"{server.url}/a", tmp_path / "a", digest=MD5)
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_part_that_is_already_whole_needs_no_more_bytes(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    (tmp_path / "a.part").write_bytes(BODY)
    (tmp_path / "a.part.yaml").write_text(yaml.safe_dump({"url": f"{server.url}/a", "md5": None, "validator": server.tag(BODY)}))
    client.download(f"{server.url}/a", tmp_path / "a")
    assert len(server.requests) == 1, "416 with the length of the part says that it is whole"
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    (tmp_path / "a.part").write_bytes(BODY + b"more")
    (tmp_path / "a.part.yaml").write_text(yaml.safe_dump({"url": f"{server.url}/a", "md5": MD5, "validator": None}))
    client.download(f"{server.url}/a", tmp_path / "a", digest=MD5)
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("notes", ["{", "[1]", "url: elsewhere\nmd5: null\nvalidator: '\"x\"'\n", ""])
def test_a_part_of_unknown_origin_is_thrown_away(server: Server, client: Client, tmp_path: Path, notes: str) -> None:
    server.files["/a"] = BODY
    (tmp_path / "a.part").write_bytes(b"other bytes")
    (tmp_path / "a.part.yaml").write_text(notes)
    client.download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_wrong_content_is_fetched_once_more(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    server.faults["/a"] += [other(BODY[::-1])]
    client.download(f"{server.url}/a", tmp_path / "a", size=len(BODY), digest=MD5)
    assert (tmp_path / "a").read_bytes() == BODY


def test_wrong_content_twice_is_an_error_and_leaves_no_file(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY[::-1]
    found = hashlib.md5(BODY[::-1]).hexdigest()
    with pytest.raises(InputError) as error:
        client.download(f"{server.url}/a", tmp_path / "a", digest=MD5)
    path = tmp_path / "a"
    assert error.value.reason == f"{path}: cannot be used as it comes from {server.url}/a: wrong MD5 {found}, expected {MD5}."
    assert len(server.requests) == 2
    assert names(tmp_path) == []


def test_a_file_of_another_length_than_stated_is_not_taken(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a"] = BODY
    with pytest.raises(InputError, match=r"the server's file has 512000 bytes, 7 expected\. Make the manifest anew\."):
        client.download(f"{server.url}/a", tmp_path / "a", size=7, digest=MD5)
    assert names(tmp_path) == []


def test_a_broken_gzip_of_the_right_length_is_found(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/a.gz"] = gzip.compress(os.urandom(50_000))[:-1000]
    with pytest.raises(InputError, match="the gzip file is broken"):
        client.download(f"{server.url}/a.gz", tmp_path / "a.gz")
    assert names(tmp_path) == []


def test_a_page_in_place_of_a_file_is_found(server: Server, client: Client, tmp_path: Path) -> None:
    server.files["/h.gmt"] = b"\n<!DOCTYPE html><html>Please log in</html>"
    with pytest.raises(InputError, match=r"a web page came in place of the file\. Open the address in a browser"):
        client.download(f"{server.url}/h.gmt", tmp_path / "h.gmt")
    assert names(tmp_path) == []


def test_a_body_packed_on_the_way_is_not_written_as_it_is(server: Server, client: Client, tmp_path: Path) -> None:
    packed = gzip.compress(b"a\tb\n" * 100)
    server.faults["/t.tsv"] += [other(packed, **{"Content-Encoding": "gzip"})] * 2
    with pytest.raises(InputError, match="the server sends it packed as 'gzip'"):
        client.download(f"{server.url}/t.tsv", tmp_path / "t.tsv")
    server.faults["/t.tsv.gz"] += [other(packed, **{"Content-Encoding": "gzip"})]
    client.download(f"{server.url}/t.tsv.gz", tmp_path / "t.tsv.gz")
    assert gzip.decompress((tmp_path / "t.tsv.gz").read_bytes()) == b"a\tb\n" * 100


def test_three_server_errors_are_waited_for_with_growing_pauses(server: Server, client: Client, slept: list[float]) -> None:
    server.services["/q"] = lambda query, body: {"seen": [query, body]}
    server.faults["/q"] += [status(500), status(503), status(502)]
    assert client.json(f"{server.url}/q", query={"a": 1}, body=["b"]) == {"seen": [{"a": "1"}, ["b"]]}
    assert [0.5 <= pause / 2**k <= 0.9 for k, pause in enumerate(slept)] == [True] * 3
    again: list[float] = []
    server.faults["/q"] += [status(500), status(503), status(502)]
    Client(tries=4, sleep=again.append).json(f"{server.url}/q", query={"a": 1}, body=["b"])
    assert again == slept, "chance comes from the seed and the address"
    server.faults["/q"] += [status(500)]
    Client(tries=4, sleep=again.append, seed=1).json(f"{server.url}/q", body=[])
    assert again[3] != slept[0]


def test_retry_after_is_honoured(server: Server, client: Client, slept: list[float]) -> None:
    server.services["/q"] = lambda query, body: 1
    server.faults["/q"] += [
        status(429, Retry_After="37"),
        status(503, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"),
        status(429, Retry_After="x"),
    ]
    assert client.json(f"{server.url}/q") == 1
    assert slept[0] == 37
    assert all(pause < 4 for pause in slept[1:]), "a date in the past and a word that is none add nothing"


def test_a_server_that_asks_for_an_hour_is_not_waited_for(server: Server, client: Client, slept: list[float]) -> None:
    server.faults["/q"] += [status(429, Retry_After="3600")]
    with pytest.raises(InputError, match=r"after 1 try \(status 429 Too Many Requests\), and the server asks to wait 3600 s"):
        client.json(f"{server.url}/q")
    assert not slept


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_refusal_is_not_repeated(server: Server, client: Client, tmp_path: Path, code: int) -> None:
    server.faults["/q"] += [status(code)] * 2
    with pytest.raises(InputError) as error:
        client.json(f"{server.url}/q")
    assert error.value.reason.startswith(f"refused by {server.url}/q; found 'status {code} ")
    assert "open-access" in error.value.remedy
    with pytest.raises(InputError, match="refused by"):
        client.download(f"{server.url}/q", tmp_path / "q")
    assert len(server.requests) == 2


def test_a_page_in_place_of_json_ends_with_what_it_was(server: Server, client: Client, slept: list[float]) -> None:
    server.faults["/q"] += [other(b"<html>down for maintenance", Content_Type="x", **{"Content-Type": "text/html"})] * 4
    with pytest.raises(InputError, match=r"after 4 tries \(the answer is no JSON but text/html, '<html>down for maintenance'\)"):
        client.json(f"{server.url}/q")
    assert len(slept) == 3


def test_json_that_is_cut_is_asked_for_again(server: Server, client: Client) -> None:
    server.services["/q"] = lambda query, body: list(range(1000))
    server.faults["/q"] += [cut(100)]
    assert client.json(f"{server.url}/q") == list(range(1000))


def test_nobody_there_is_unreachable(tmp_path: Path, slept: list[float], server: Server) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(UnreachableError, match=r"no success at .* after 2 tries .*Check the connection and the proxy"):
        Client(tries=2, sleep=slept.append).json(url)


def test_an_address_that_is_none_is_an_input_error(client: Client) -> None:
    with pytest.raises(InputError, match="cannot be fetched: no-address"):
        client.json("no-address")


def test_the_proxy_of_the_environment_is_used(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.services["/files"] = lambda query, body: "by proxy"
    assert client.json("http://gdc.invalid/files") == "by proxy"
    assert server.requests[0].headers["Host"] == "gdc.invalid"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 300), max_size=5), size=st.integers(1, 600), tagged=st.booleans(), proven=st.booleans())
def test_any_cuts_give_the_same_bytes(server: Server, tmp_path: Path, cuts: list[int], size: int, tagged: bool, proven: bool) -> None:
    body = BODY[:size]
    server.files["/h"] = body
    server.faults["/h"].clear()
    tag = server.tag

    def broken(after: int):
        def fault(handler, content: bytes) -> None:
            wanted = handler.headers.get("Range")
            first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            rest = content[first:]
            said = {"ETag": tag(content)} if tagged else {}
            said |= {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if wanted else {}
            handler.send(206 if wanted else 200, rest, sent=min(after, len(rest)), **said)

        return fault

    server.faults["/h"] += [broken(after) for after in cuts]
    path = tmp_path / "h"
    path.unlink(missing_ok=True)
    Client(tries=9, sleep=lambda _: None).download(f"{server.url}/h", path, digest=hashlib.md5(body).hexdigest() if proven else None)
    assert path.read_bytes() == body
    assert names(tmp_path) == ["h", "h.source.yaml"]


def test_a_file_ends_at_its_declared_size(server, client, tmp_path):
    """The manifest states the size; the server sends without end, and without a length of its own."""
    server.files["/f"] = b"right"
    server.faults["/f"] += [endless, endless]
    begin = time.monotonic()
    with pytest.raises(InputError) as error:
        client.download(f"{server.url}/f", tmp_path / "f", size=100_000)
    assert time.monotonic() - begin < 10
    problem = f"cannot be used as it comes from {server.url}/f: the server sends more than 100000 bytes; 100000 expected."
    assert str(error.value).startswith(f"{tmp_path / 'f'}: {problem}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_length_nobody_states_has_an_end_too(server, client, tmp_path, monkeypatch):
    monkeypatch.setattr(part, "MOST_UNSTATED", 1_000_000)
    server.files["/f"] = b"right"
    server.faults["/f"] += [endless, endless]
    with pytest.raises(InputError, match="the server sends more than 1000000 bytes; it states no length"):
        client.download(f"{server.url}/f", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("packed", [True, False])
def test_an_answer_in_json_has_an_end(server, client, monkeypatch, packed):
    """Zeros packed to a thousandth count unpacked."""
    monkeypatch.setattr(client_module, "MOST_JSON", 1_000_000)
    content = json.dumps([0] * 1_000_000).encode()
    server.faults["/s"] += [other(gzip.compress(content), **{"Content-Encoding": "gzip"}) if packed else other(content)]
    with pytest.raises(InputError) as error:
        client.json(f"{server.url}/s")
    assert str(error.value).startswith(f"the answer of {server.url}/s is too large; found 'more than 1,")
    assert len(server.asked("/s")) == 1


@pytest.mark.parametrize("at", ["head", "body", "chunk"])
def test_a_server_that_drips_is_left(server, slept, tmp_path, monkeypatch, at):
    """No silence is as long as the timeout, so that a byte a second would hold a job for years."""
    monkeypatch.setattr(arriving, "OVER", 0.2)
    monkeypatch.setattr(client_module, "HEADERS", 1)
    server.files["/f"] = server.files["/s"] = b"x" * 1_000_000
    server.faults["/f"] += [dripping(at)] * 3
    server.faults["/s"] += [dripping(at)] * 3
    patient = Client(tries=3, timeout=0.4, sleep=slept.append)
    begin = time.monotonic()
    reason = "no answer began within 0.4 s" if at == "head" else "less than 1024 bytes a second came over 0.2 s"
    for ask in (lambda: patient.download(f"{server.url}/f", tmp_path / "f"), lambda: patient.json(f"{server.url}/s")):
        with pytest.raises(InputError, match=f"after 3 tries \\({reason}\\)"):
            ask()
    assert time.monotonic() - begin < 8
    assert len(slept) == 4
