"""Content decides: neither times nor paths do, and what has been read is not read again."""

import os
import pickle
from pathlib import Path

import pytest

from pipeline.contents import ABSENT, Contents, Place, Source, by_content


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "clinical.tsv"
    file.write_text("patient_id\tage\nA\t60\n")
    return file


def test_a_digest_follows_the_content_and_not_the_time_or_the_place(table, tmp_path):
    contents = Contents()
    before = contents.digest(table)
    os.utime(table, (1, 1))
    assert contents.digest(table) == before
    copy = tmp_path / "copy.tsv"
    copy.write_bytes(table.read_bytes())
    assert contents.digest(copy) == before
    table.write_text("patient_id\tage\nA\t61\n")  # of the same size
    assert contents.digest(table) != before
    assert contents.digest(tmp_path / "none.tsv") == contents.digest(tmp_path) == ABSENT


def test_an_edit_of_the_same_size_and_time_is_noticed(table):
    contents, state = Contents(), table.stat()
    before = contents.digest(table)
    table.write_text("patient_id\tage\nA\t61\n")
    os.utime(table, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert contents.digest(table) != before


def test_what_was_read_is_remembered_by_the_next_process(table, tmp_path):
    reads = []

    def read(path: Path) -> str:
        reads.append(path)
        return "0123456789abcdef"

    memory = tmp_path / "memory.json"
    for _ in range(2):
        contents = Contents(memory)
        contents.digest(table, read)
        contents.keep()
    assert len(reads) == 1
    memory.write_text('{"spoilt": [1]}')
    Contents(memory).digest(table, read)
    assert len(reads) == 2


def test_a_memory_that_cannot_be_written_costs_nothing_else(table, tmp_path):
    (tmp_path / "file").write_text("")
    contents = Contents(tmp_path / "file" / "memory.json")
    contents.digest(table)
    contents.keep()


def test_a_listing_follows_names_and_contents(tmp_path):
    (tmp_path / "a.svs").write_text("a")
    (tmp_path / "b.svs").write_text("b")
    contents = Contents()
    before = contents.listing(tmp_path, tmp_path.glob("*"))
    os.utime(tmp_path / "a.svs", (1, 1))
    assert contents.listing(tmp_path, tmp_path.glob("*")) == before
    (tmp_path / "a.svs").rename(tmp_path / "c.svs")
    assert contents.listing(tmp_path, tmp_path.glob("*")) != before


def test_parameters_are_compared_by_content_and_reach_a_job_as_paths(table, tmp_path, monkeypatch):
    settings = {"os": {"file": str(table), "time": "days"}, "parts": [{"folder": str(tmp_path)}], "none": {"table": None}}
    seen = by_content(settings)
    assert seen == settings
    before = repr(seen)
    assert str(tmp_path) not in before
    moved = tmp_path / "moved.tsv"
    table.rename(moved)
    assert repr(by_content({**settings, "os": {"file": str(moved), "time": "days"}})) == before
    moved.write_text("other")
    monkeypatch.setattr(Source, "contents", Contents())
    assert repr(by_content({**settings, "os": {"file": str(moved), "time": "days"}})) != before
    sent = pickle.loads(pickle.dumps(seen))
    assert sent == settings
    assert type(sent["os"]["file"]) is str
    assert repr(Place("/a")) == repr(Place("/b"))
